"""Shards that lie elsewhere: behind http(s), or what a command writes (`pipe:aws s3 cp ... -`).

`origin` asks for a shard's bytes once; `remote_stream` gives them from the first to the last, whatever breaks on the way;
`shard_cache` keeps them on this machine's disk; `shelf` is what a source of shards sees of all that.
"""
