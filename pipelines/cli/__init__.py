"""The command line, `skipstep`: `main` holds the short commands, the others have files."""
