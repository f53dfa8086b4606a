"""Load for any mail server: ``locust -f loadtests --host smtp://127.0.0.1:2525``.

Locust imports every file here whose name does not begin with an underscore as a locustfile, under
its bare name: such a file may hold nothing but user classes, and its name must not be that of any
other module. Everything else has an underscore. Nothing here knows the server under test.
"""
