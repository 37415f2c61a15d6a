"""The parts of the web UI. `app.py` puts them together; gradio is imported by the tabs alone."""
