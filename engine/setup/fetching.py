"""How a config says that shards are fetched."""

from yacs.config import CfgNode

from data.remote.shelf import Fetching


def fetching_of(cfg: CfgNode) -> Fetching:
    data = cfg.DATA
    return Fetching(data.SHARD_TRIES, data.SHARD_CACHE, int(data.SHARD_CACHE_GB * 1e9))
