"""URLs in what a run says: what follows a question mark is often a key."""


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def shown(url: str) -> str:
    """The URL for messages: without what follows the question mark, which may be a key to it. Other texts as they are."""
    return url.partition("?")[0] if is_http(url) else url
