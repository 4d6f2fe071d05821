"""One message: values and codecs. Nothing here talks to a server."""
