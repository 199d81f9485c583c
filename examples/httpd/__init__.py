"""An HTTP/1.1 server on trionet: static files and a few services, over any network.

``python -m examples.httpd --help`` runs it. Inside a program::

    async with open_application("site") as application:
        server = trionet.Server(application.handle)
        await server.serve(await trionet.listen("memu", "site"))
"""

from .application import Application as Application
from .application import open_application as open_application
from .settings import Settings as Settings

__all__ = ("Application", "Settings", "open_application")
