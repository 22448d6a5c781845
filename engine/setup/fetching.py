"""How a config says that shards are fetched."""

from yacs.config import CfgNode

from data.remote.shelf import Fetching


def fetching_of(cfg: CfgNode) -> Fetching:
    return Fetching(cfg.DATA.SHARD_TRIES, cfg.DATA.SHARD_CACHE, int(cfg.DATA.SHARD_CACHE_GB * 1e9))
