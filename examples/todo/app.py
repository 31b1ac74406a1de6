"""The server of the todo example: `holdfast serve app:app` here; see docs/examples.md."""

from __future__ import annotations

from holdfast import Application, Bootstrap, Field, Standard, SyncModel, User, auth

app = Application()


def verify_token(token: str, name: str) -> User | None:
    """For the example a token is a user's name, and everybody may enter the database `todo`."""
    return User(token) if name == "todo" and token.isalnum() else None


app.stratasync(
    models=[
        SyncModel(
            "Todo",
            group_key="listId",
            bootstrap=Bootstrap(
                fields=["id", "text", "done", "listId", "createdAt"], instant_fields=["createdAt"]
            ),
            mutate=Standard(
                insert_fields={
                    "text": "string",
                    "done": Field("string", False),
                    "listId": "string",
                    "createdAt": "dateNow",
                },
                update_fields=["text", "done"],
                actions="IUD",
            ),
        )
    ],
    auth=auth(verify_token, lambda user_id, name: ["shopping"]),
)
