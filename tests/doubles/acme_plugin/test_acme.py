from rnncore.testing import BackendConformance


class TestAcme(BackendConformance):
    backend = "acme"
