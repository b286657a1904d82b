"""A request's pictures: those in it, and those at addresses: from named hosts only, and bounded.

An address is a way to make this service knock at doors that its caller cannot reach. So every hop
is looked at as the first one: its host is on the operator's list, its name is resolved here, all
that it resolves to is public, and the connection goes to that very number, so that a second look
at the name changes nothing. Proxies of the environment are not used, nothing is sent along.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterator, Sequence

import httpx2

from service.errors import BadPicture, PictureOutOfReach, TooMuch
from service.orders import PictureOrder
from service.pictures_in import EMPTY, check_pixels, from_data_uri, is_data, pixels_of
from service.settings import Limits, Remote

_PORTS = {"https": 443, "http": 80}
_MOVED = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {"Accept": "image/png, image/jpeg, image/webp", "Accept-Encoding": "identity"}


async def pictures_of(
    shown: Sequence[tuple[str, str]], limits: Limits, remote: Remote
) -> tuple[PictureOrder, ...]:
    """A request's pictures, which nobody has decoded yet; their headers were looked at.

    Args:
        shown: The key and the address of each: a data URI, or where it is fetched from.
        limits: The operator's.
        remote: Where it may be fetched from.

    Raises:
        BadPicture, NotAnImage: One that no model would look at.
        PictureOutOfReach: An address that is not fetched.
        TooMuch: More bytes of one, or more pixels of all together, than allowed.
    """
    found, pixels = [], 0
    for place, address in shown:
        if not address:
            raise BadPicture(place, EMPTY)
        if is_data(address):
            data = await asyncio.to_thread(from_data_uri, address, place, limits)
        else:
            data = await fetched(address, place, remote, limits.input_picture_bytes)
        pixels += await asyncio.to_thread(pixels_of, data, place)
        check_pixels(pixels, limits.input_pixels, place)
        found.append(PictureOrder(data=data, place=place))
    return tuple(found)


async def fetched(address: str, param: str, remote: Remote, most: int) -> bytes:
    """The bytes at an address.

    Args:
        address: As the request has it.
        param: Its key, for refusals.
        remote: What the operator allows.
        most: Bytes.

    Raises:
        PictureOutOfReach: It may not be fetched, or could not be.
        TooMuch: It is longer.
    """
    if not remote.hosts:
        raise PictureOutOfReach(param, "this service fetches nothing")
    try:
        async with asyncio.timeout(remote.seconds):
            return await _followed(httpx2.URL(address), param, remote, most)
    except TimeoutError:
        raise PictureOutOfReach(param, f"it took longer than {remote.seconds:g} seconds") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise PictureOutOfReach(param, f"{type(error).__name__} on the way") from None


async def _followed(url: httpx2.URL, param: str, remote: Remote, most: int) -> bytes:
    async with httpx2.AsyncClient(trust_env=False, timeout=remote.seconds) as client:
        for _ in range(remote.redirects + 1):
            found = await _hop(client, url, param, remote, most)
            if isinstance(found, bytes):
                return found
            url = url.join(found)
    raise PictureOutOfReach(param, f"it was moved more than {remote.redirects} times")


async def _hop(
    client: httpx2.AsyncClient, url: httpx2.URL, param: str, remote: Remote, most: int
) -> bytes | str:
    """The bytes, or where they were moved to."""
    for why in _forbidden(url, remote):
        raise PictureOutOfReach(param, why)
    number = await _public(url, param, remote)
    request = client.build_request(
        "GET",
        url.copy_with(host=number, fragment=None),
        headers={**_HEADERS, "Host": url.netloc.decode("ascii")},
        extensions={"sni_hostname": url.raw_host.decode("ascii")},
    )
    answer = await client.send(request, stream=True)
    try:
        if answer.status_code in _MOVED and "location" in answer.headers:
            return answer.headers["location"]
        if answer.status_code != 200:
            raise PictureOutOfReach(param, f"its host answered {answer.status_code}")
        return await _bounded(answer, param, most)
    finally:
        await answer.aclose()


async def _bounded(answer: httpx2.Response, param: str, most: int) -> bytes:
    """The body as it came: what is compressed could be longer than it says."""
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise PictureOutOfReach(param, "its host compresses it")
    announced = answer.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > most:
        raise TooMuch(param, int(announced), most, " bytes")
    data = bytearray()
    async for piece in answer.aiter_raw():
        data += piece
        if len(data) > most:
            raise TooMuch(param, len(data), most, " bytes")
    return bytes(data)


def _forbidden(url: httpx2.URL, remote: Remote) -> Iterator[str]:
    """What stands against an address as it is written."""
    if url.scheme != "https" and not (url.scheme == "http" and remote.plain_http):
        yield "its address is neither a data URI nor https://"
    elif url.userinfo:
        yield "its address has a user or a password"
    elif not _listed(url, remote):
        yield f"{url.host[:200] or 'no host'} is none of the hosts that this service fetches from"


def _listed(url: httpx2.URL, remote: Remote) -> bool:
    host = url.raw_host.decode("ascii").lower()
    usual = url.port is None or url.port == _PORTS[url.scheme]
    named = f"[{host}]" if ":" in host else host
    written = named if usual else f"{named}:{url.port}"
    return any(
        written == known or (known.startswith("*.") and written.endswith(known[1:]))
        for known in remote.hosts
    )


async def _public(url: httpx2.URL, param: str, remote: Remote) -> str:
    """One of the numbers that the host has now; all of them are looked at.

    Raises:
        PictureOutOfReach: It has none, or one that is not public.
    """
    host, port = url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise PictureOutOfReach(param, f"{host} is not known") from None
    numbers = [str(address[0]) for *_, address in found]
    if not numbers or not (remote.private or all(map(is_public, numbers))):
        raise PictureOutOfReach(param, f"{host} is inside a private network")
    return numbers[0]


def is_public(number: str) -> bool:
    """Whether an IP address is one that everybody can reach, whatever it is wrapped in."""
    address = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inside = [address.ipv4_mapped, address.sixtofour, teredo[1] if teredo else None]
        if address in _NAT64:
            inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(str(one)) for one in inside if one is not None):
            return False
        if address.ipv4_mapped is not None:
            return True  # its own range is none
    return address.is_global and not address.is_multicast
