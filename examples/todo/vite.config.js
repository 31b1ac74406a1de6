import { defineConfig } from "vite";

// The page waits for the client at its top level, which older targets do not know.
export default defineConfig({ build: { target: "es2022" } });
