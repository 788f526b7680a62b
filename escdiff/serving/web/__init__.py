"""The application that answers over HTTP."""
