class SnapshotClient:
    def __init__(self, *a, **k):
        pass

    async def run(self):
        pass
