"""`python -m edge.cli`: the `holdfast` command where it is not on the PATH."""

from edge.cli import main

main()
