"""The seccomp listener's fast path: notifications answered by machine code, where nothing about them is in question.

A mediated call costs the interpreter a thousand lines of C and as many objects, which its caller has pushed out of the caches
since the last one: 65 µs for each of a package manager's calls, of which the kernel needs 16. What is decided does not change
from call to call: in most directories no rule refuses an ordinary name. So the mediator decides on *directories*, once, and
what is made, opened for writing, linked, renamed or removed below them by ordinary names is then answered by ``fastpath.c``,
which compares, and makes the system calls. Everything else comes back as it was received.

Here are only its tables. What may be in them is the mediator's to say (``mediate.shortcut``).
"""

from __future__ import annotations

from _struct import Struct
from errno import EINTR, ENOENT

from remit.sandbox.kernel.call import MACHINE, Buffer, failure, long
from remit.sandbox.kernel.code import executable
from remit.sandbox.kernel.notify import NOTIFICATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from remit.sandbox.kernel.placement import Placement

CODE = {
    "x86_64": bytes.fromhex(
        "415741564531f641554989cd41544989f4554889d5534889fb41504c8b7f604c037f5031c031c948890cc348ffc04883f80a75f14531d245"
        "31c04531c9b8100000004c89e7be002150c04889da0f054885c00f88a5000000488b4350482343604c89e64889df4869c038060000480343"
        "5848898300010000e88c00000085c0747a4d85f675074c8bb3f00000004d85ed7507b801000000eb644c397b5074f3488b83f00000004c29"
        "f0483d002d31017fe14489650031c066c7450401004c39e87d0c66c744c506000048ffc0ebef4531d24531c04531c9b807000000ba050000"
        "004889ef4c89ee0f0548ffc875a466837d06010f842affffffeb9731c05a5b5d415c415d415e415fc3554889f5534889fb4883ec188b4708"
        "488b97a800000089c1238fb00000008b0c8a31d24883bfc800000000751089ca81e2ffffff7f39c20f95c20fb6d2488993e8000000488b93"
        "0001000031f6488972304883bbd000000000ba01000000750c0d0000008031d239c80f94c2488b830001000031c94889e64531d2488993d8"
        "00000031d24531c04531c948895020488b8300010000bf0100000031d248894818b8e40000000f054869042400ca9a3b4803442408488983"
        "f0000000482b83f8000000483d400d03007e0931c0488983e00000008b431083f8570f8443010000774883f8530f84fb000000771983f83b"
        "0f84a901000083f8520f848b01000083f8027477eb4e83f855488b4b200f848900000083f8560f843901000041b9000200004989c8e90001"
        "00003d080100000f848101000077243d020100000f84ba0000003d070100000f84e40000003d01010000746e31c0e9750100003d09010000"
        "0f84000100003d3c010000b8000000000f843a010000e9550100004c8b43284d89c14183e140740b4c8b4b304181e1ff0f0000488b4b2045"
        "89c0eb114c8b4b2841b8410200004181e1ff0f0000ba9cffffff4889ee4889dfe8a40c0000e90e0100004c8b43304d89c14183e140740b4c"
        "8b4b384181e1ff0f0000488b4b288b53204589c0ebcc4c8b4b284c8b4320b99cffffff4181e1ff0f0000eb124c8b4b304c8b43288b4b2041"
        "81e1ff0f0000ba020100004889ee4889dfe8570e0000e9ad0000004c8b43204531c9b99cffffffeb1d4c8b4b3031c041f7c1fffdffff0f85"
        "8c0000004c8b43288b4b204589c9ba07010000ebbe4c8b4b2841b89cffffffba9cffffffeb1731c0837b40007562488b4b284c8b4b38448b"
        "43308b53204889ee4889dfe8bf0e0000eb46488b4b204c8b4b2841b89cffffffba9cffffffeb26488b53204889ee4889dfe829110000eb20"
        "837b4000751a488b4b284c8b4b38448b43308b53204889ee4889dfe8980f00004883c4185b5dc348b825232284e49cf2cb31d248b9b30100"
        "00000100004839f27411440fb6041748ffc24c31c0480fafc1ebea4885c0ba01000000480f44c2c331c04839d0740d8a0c06380c07750b48"
        "ffc0ebeeb801000000c331c0c34889f94c8d4424f5bf0100000041b90a00000089f031d24189f241f7f183c23089c6418814384889fa48ff"
        "c74183fa0977e14863d24889c84889d6418a3c1048ffca48ffc0408878ff85d275ee488d0431c3415789ff41bf00100000415641be000100"
        "0041554989d54154554889f55331db488d7424e04c8d5424f04889e84d89fc48896c24f0ba0100000025ff0f000041b8010000004929c44c"
        "89f04829d84939c44c0f47e0498d441d004531c948894424e0b8360100004c896424e84c896424f80f054885c07e2a488d141841807c1d00"
        "0075054889d8eb1d48ffc34839da75eb4c39e0720c4801c54881faff00000076884883c8ff5b5d415c415d415e415fc3c7072f70726f488d"
        "470666c74704632f4889c7e8e5feffffc6002f48ffc0c348ba2f70726f632f7365c747086c662f66488d470e48891766c7470c642f4889c7"
        "e8b8feffffc60000c3554189f389fe534889d34883ec304889e54889efe89effffff4889c14183fb9c750f66c7016377488d4003c6410264"
        "eb204585db79064883c8ffeb5b66c7006664488d78034489dec640022fe863feffffc6000041baf80000004531c04531c9b80b01000048c7"
        "c79cffffff4889ee4889da0f05488d50ff4881faf600000077b5803b2f75b0807c03ff2974a931d24883f801480f44c24883c4305b5dc348"
        "83bfe8000000000f845b010000415741564155415455534889fb4881ec30020000448b6f084c8bb7000100004989e74489ee4c89ffe8defe"
        "ffff4531c04531c94c89fec700657865004989c4498d963804000041ba0002000048c7c79cffffffb80b0100000f054889c5488d40ff483d"
        "fe010000760731c0e9d900000041c6442404004531d24531c04531c941c7042473746174b801010000ba000008000f054889c74885c078ce"
        "4c8d642430ba0002000031c04c89e60f0531f64989c7b8030000004889f20f054c89f84885c07e1141807c04ff29488d50ff74054889d0eb"
        "ea31d24c39f87d1683fa137f1131c941803c04200f94c148ffc001caebe531d24c39f87c354885d20f8468ffffff498956284489ea49896e"
        "30488b83a80000002393b000000044892c9031c0488983e8000000b801000000eb1c418a0c0483e93080f90977bf486bd20a480fbec948ff"
        "c04801caebaa4881c4300200005b5d415c415d415e415fc3b801000000c34889d04821f0488b0cc74885c9740a4839d1740848ffc0ebea31"
        "c0c3b801000000c341544989f34989f94889d6554989d253488b9f880000004c89dfe810fcffff4d8ba1900000004889c54d89e14921c14d"
        "89c849c1e0084901d8498b004885c074294839e8751c418b40084c39d07513498d78184c89d24c89dee80afcffff85c0750b49ffc14d21e1"
        "ebc54531c05b4c89c05d415cc341574c63fe4889ce41564989fe41554154554c89c55389d34881ec080100004c8baf000100008b7f084c8d"
        "6424084c89e2e82cfcffff4885c00f8e510100004889c14c89f848c1e009807c24082f4d8d6c05387509ba0100000031dbeb24418b7e0889"
        "de4c89ea48890c24e8ecfcffff4889c34885c00f8814010000488b0c2431d241c6441d002f4889d048ffc34839c87c0d4889c64829d6751c"
        "e9f0000000418a34044080fe2f74e948ffc348ffc04188741dffebd7807c14082e751b4883fe010f84c80000004883fe02750b807c14092e"
        "0f84b70000004839c87406488d5001eb9e41c6441d0000498b860001000031d24a895cf81831c04c896d10488955004c8d60014d89e14c39"
        "e37f0948837d0000750feb4043807c25002f74ef49ffc4ebe54c89e64b8d7c0d004829c648ffcee883faffff498bb6a0000000498bbe9800"
        "00004889c2e81cfeffff85c0740631c0488945004c39e375134d01e931c048837d00004c894d080f95c0eb234c89e24c89ee4c89f7e80efe"
        "ffff4885c075084c89e0e978ffffff48894500ebf231c04881c4080100005b5d415c415d415e415fc34881ca000008004863ff4531c04531"
        "c948895424e8b8b5010000488d5424e841ba1800000048894c24f048c74424f80c0000000f05c3488b17488b47088b7210480377104839c6"
        "72048b420cc3534889fbba0000210031c9c640ff00488b078b780ce899ffffff488b5308c642ff2f5bc34889f84889f74885f67820488b00"
        "8b400c4839f0741531d24531d24531c04531c9b8030000004889d60f05c3488b87e00000004885c0757d53488b87f00000004889fb4531d2"
        "4531c04531c9ba40000000488987f8000000488b7f68b811000000488d7424c00f05ba010000004839d07e3f803c162f753448ffca31c0bf"
        "010000008a0c1683e93080f90977140fbec948ffca0fafcf6bff0a01c84883faff75e189c64889b3e0000000eb0748ffc2ebbc31c05bc3c3"
        "488b8700010000488b97f00000004889108b57088950088b57104889701089500c488b475048ffc048894750c341554154554889d5534883"
        "7f68004889f3790b4531d24531c04531c9eb12e826ffffff4531d24531c04531c9ffc87512b810000000be012118c04889df4889eaeb3141"
        "bc1000000041bd0421084031d24889df4c89e04c89ee0f05be012118c04c89e04889ea0f05ba010000004c89e04c89ee0f055b5d415c415d"
        "c34883ec20488b07f7d94889542410488d542408488944240831c0894c24188944241ce85dffffff4883c420c34989f04889d64889d1e81d"
        "ffffff31d24c89c6e8bcffffffb801000000c389f0488b9780000000488b77784531d289c74531c04531c9b8cb0000000f05c348837f6800"
        "0f88030100004155415455534889fb4881ec10040000e843feffff89c0483b43700f83d00000004c8d6424108b7b084531d24531c04531c9"
        "b8cc000000be000400004c89e20f054889c5483943780f85a3000000488bb3800000004889c24c89e7e8aaf7ffff85c00f848900000031d2"
        "488d7c240cb8350100004889d60f054989c04885c075704889e8b908000000489948f7f94c39c07e0b31d24b8914c449ffc0ebf08b4c240c"
        "ba010000004531d24531c041bdcb0000004531c931ff4889ee89c848d3e2c1e806488954c4104c89e84c89e20f054885c0751c8b7b084c89"
        "e80f05ba010000004885c0740c31f64889dfe8e4feffff31d24881c41004000089d05b5d415c415dc331c0c3415481e1000008004989f455"
        "4889fd534883ec28488b078954241c31d2895424204889442410c744241802000000894c2424e8b8feffff488d54241085c0754131f64889"
        "ef488914244531d2e88bfdffff4531c0488b14244531c9b810000000be032118404c89e70f054885c0790e4883f8fe0f95c248f7d884d275"
        "6631c0eb6231c04531d24531c04531c989442418be03211840b8100000004c89e70f058b75084889ef4889c3e822feffff31f64889efe818"
        "feffff4885db790e4883fbfe74084889d848f7d8eb1931f64889ef31c9e806fdffff4889da4c89e6e8a4fdffffeb9a4883c4285b5d415cc3"
        "4883ec20488b07488d542408488944240831c04889442410b80100000048c1e0204889442418e8f2fcffff4883c420c34989f9488bbf0001"
        "00004989f231c0488b77184885f674334883c738e88ef5ffff498bb1c0000000498bb9b80000004889c2e827f9ffff85c074104c89d64c89"
        "cfe88affffffb801000000c3554889fd5389f34881ec90000000e870fbffff4889c731c04885ff784a85db750431dbeb32488b75084889e2"
        "41ba000100004531c04531c9b8060100000f054885c075dd8b44241831db2500f000003d00a000000f94c34889fe4889efe85cfbffff89d8"
        "83f0014881c4900000005b5dc3488b0283781400747041544989f44489c6554889cd534889fb4889d741514885c97422488b018378140075"
        "0431c0eb434489442404e855ffffff85c074ee8b7424044889efe845ffffff85c074de4889dfe8dcf6ffff85c074d24883ceff4889dfe89d"
        "fbffff4c89e6e8a5feffffb8010000005a5b5d415cc331c0c341f7c0430200000f840402000041574c89c04989f74c89ce415648253c60e5"
        "ff81e6000c000041554d89cd41544d89c455534883ec284809f0740731c0e9c0010000488d44241031f64889fb4989c048890424e864f8ff"
        "ff85c075184c89fe4889dfe860feffff85c00f95c00fb6c0e98e0100004c8b74241041837e1400741c488b142441b80100000031c94c89fe"
        "4889dfe8edfeffffe9660100004c89e583e540740a4883bbd800000000748d4889dfe800f6ffff85c07481418b761048037424204885ed75"
        "0c41f6c4030f8469ffffffeb4c418b7e0c4c89e24c89e980ca80e87af9ffff4889c54883f8ef752441f6c48074d34883c4284c89fe4889df"
        "ba110000005b5d415c415d415e415fe949fbffff4885c078b041be01000000eb43418b7e0c4c89e24c89e980ce08e82ef9ffff4889c54885"
        "c00f88fdfeffff410fbae40b721b4531d24531c04531c9b848000000be040000004889ef4c89e20f054531f64c89e14889ea4c89fe4889df"
        "4c8b6b50e833fcffff4989c44885c074654585f67434488b3c24e808f9ffff4889c74885c078174531d24531c04531c9488b742418b80701"
        "000031d20f054889fe488b3c24e818f9ffff4c396b50750b4c89e64889dfe8bdf9ffff488b83000100004c89e131d24c89fe4889df4c8960"
        "10e84bfaffff31d24531d24531c04531c9b8030000004889ef4889d60f05b8010000004883c4285b5d415c415d415e415fc331c0c341564d"
        "89ce415541544989f431f6554889fd5389d389ca4c89c14883ec204c8d6c24084d89e8e87df6ffff85c0750731c0e98f000000488b442408"
        "8378140074154531c031c94c89ea4c89e64889efe81cfdffffeb6f81fb02010000750a4883bdd80000000074c74889efe832f4ffff85c074"
        "bb4c89efe806f8ffff4889c74885c078ab488b7424104863c34531d24531c04531c94c89f20f054889fe4889c34c89efe815f8ffff48f7db"
        "4883c4204c89e64889da4889ef5b5d415c415d415ee983f9ffff4883c4205b5d415c415d415ec34157415641554989f531f641544989cc4c"
        "89c95589d54489c2534889fb4883ec504c8d7c24184d89f8e8a8f5ffff85c075084531f6e9d50000004989e04c89e189eabe010000004889"
        "dfe887f5ffff85c074df488b2c24837d140075d5488b4424188378140075ca4889dfe860f3ffff85c074be8b7d0c8b751031c9ba00002000"
        "4803742410e8eff6ffff4889c54885c0789f4c89ff4531f6e812f7ffff4989c44885c078464c8d7424304889ee4c89f7e852f2ffff4c8b54"
        "24204531c94c89f641b800040000b80901000048c7c79cffffff4c89e20f0548f7d84c89ee4889df4889c2e88df8ffff4189c64c89e64c89"
        "ffe8f4f6ffff31d24531d24531c04531c9b8030000004889ef4889d60f054883c4504489f05b5d415c415d415e415fc341574989f731f641"
        "56415541544d89cc554489c5534889fb4881ecc80000004c8d7424084d89f0e889f4ffff85c0750731c0e9260100004c8d6c24204c89e189"
        "eabe010000004d89e84889dfe864f4ffff85c074db488b44240883781400750b488b4424208378140074194531c04c89e94c89f24c89fe48"
        "89dfe8fefaffffe9d9000000488b8300010000488b5018483950207513488b742430488b7c2418e804f0ffff85c075884889dfe8fff1ffff"
        "85c00f8478ffffff4c89f74883cdffe8cbf5ffff4989c44885c078714c89efe8bbf5ffff4889c54885c07861488b742410488d5424384531"
        "c04531c941ba00010000b8060100004c89e70f054989c031c04d85c075398b4424502500f000003d0080000075274c8b542428488b742410"
        "b83c0100004889ea0f0548f7d84c89fe4889df4889c2e81af7ffffeb0231c04c89e64c89f789442404e87cf5ffff4889ee4c89efe871f5ff"
        "ff8b4424044881c4c80000005b5d415c415d415e415fc34157415641554154554889fd534883ec30488b9f00010000448b6f08488b87b000"
        "000048897424084889d64c8d73384c8bbfa80000004489ef4c89f248890424e863efffff4883f8017f0731c0e947010000807b382f75f341"
        "807c06ff2f4989c474e84889d84a8d0c238a503880fa2f75198a503980fa2f74d180fa2e75178a503a80fa2f74c484d2eb0980fa2e750680"
        "78392e74b548ffc04839c875cc807b3970751d807b3a727517807b3b6f7511807b3c63750b8a433d84c0748e3c2f748a4889efe877f0ffff"
        "85c00f847affffff4c8963184531d24531c04531c9b801010000ba0000280048c7c79cffffff4c89f60f054989c44885c078574c8d5c2410"
        "4889c64c89dfe86cefffff4531c04531c9b80b01000041ba0002000048c7c79cffffff4c89de4c89f20f05488d48ff31d24c89e74881f9ff"
        "0100004889d6480f43c24531d248894318b8030000000f05eb114883f8f3740b49ffc4740631d2488953188b04244121c54b8d14af8b0225"
        "ffffff7f3b4508750431c089024883ceff4889efe887f4ffff488b742408e88df7ffffb8010000004883c4305b5d415c415d415e415fc3"
    )
}
"""``fastpath.c`` by machine: ``long step(struct context *, long listener, long, long)``, LEFT, DONE or a negative errno."""

LEFT, DONE = 0, 1
_CONFIGURATION = Struct("=QQqQQQQQQQQQQQQ")
_DIRECTORY = Struct("=QIIII232s")
_EVENT = Struct("=qIIqQQQQ512s512s512s")
_DESCRIPTOR = Struct("=ihh")
_PUBLISHED_AT, _CONFIGURATION_AT, _UMASK_AT, _SIZE = 80, 88, 208, 264
_DIRECTORIES, _LONGEST, _CALLERS, _EVENTS = 64, 231, 64, 32
"""Directories, bytes of one's path, threads, and events that are not read yet."""
_UMASK = 1 << 31
_WORD = 8
_POLLIN = 1

_code: list[Callable[[object, object, object, object], int] | None] = []


def hashed(text: bytes) -> int:
    """FNV-1a, 64 bits, never 0: as ``fastpath.c`` has it."""
    value = 0xCBF29CE484222325
    for byte in text:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value or 1


def _table(names: Iterable[bytes]) -> Buffer:
    """Their hashes, each in the place that it says or the next one that was free; more than half are."""
    hashes = {hashed(name) for name in names}
    slots = 16
    while slots < 2 * len(hashes):
        slots *= 2
    table = Buffer(slots * _WORD)
    words = table.view.cast("Q")
    for value in hashes:
        at = value
        while words[at % slots]:
            at += 1
        words[at % slots] = value
    return table


class Others:
    """What the receiving thread waits for besides one listener: ``FastPath.step`` comes back when there is something."""

    __slots__ = ("_buffer", "address", "count")

    def __init__(self, descriptors: Iterable[int]) -> None:
        entries = [_DESCRIPTOR.pack(descriptor, _POLLIN, 0) for descriptor in (-1, *descriptors)]
        self._buffer = Buffer(len(entries) * _DESCRIPTOR.size)
        self._buffer.view[:] = b"".join(entries)
        self.address, self.count = long(self._buffer.address), long(len(entries))


class FastPath:
    """Of one authority. Used by the thread that receives.

    ``names``: what is never ordinary. ``devices``: paths that anybody may open for writing, by the kernel alone, without
    anybody being told. ``anybody``: who calls need not be known. ``placement``: the receiving thread's
    (``Listener.synchronous``). Raises OSError where there is no such code, or none may be executed.
    """

    def __init__(
        self, names: Iterable[bytes], devices: Iterable[bytes], placement: Placement | None, *, anybody: bool
    ) -> None:
        if not _code:
            _code.append(executable(CODE.get(MACHINE, b"")))
        step = _code[0]
        if step is None:
            raise failure(ENOENT, "machine code")
        self._step = step
        self._context = Buffer(_SIZE)
        self._address = long(self._context.address)
        self._alone = long(0)
        self._listener = -1
        self._descriptor = long(-1)
        self._read = 0
        self._names, self._devices = _table(names), _table(devices)
        self._directories = Buffer(_DIRECTORIES * _DIRECTORY.size)
        self._listed = 0
        self._elsewhere: dict[bytes, int] = {}
        self._callers = Buffer(_CALLERS * 4)
        self._caller = self._callers.view.cast("I")
        self._events = Buffer(_EVENTS * _EVENT.size)
        load, cpus, mask = placement.chosen if placement is not None else (-1, 1, b"")
        self._everywhere = Buffer(max(len(mask), 1))
        self._everywhere.view[: len(mask)] = mask
        _CONFIGURATION.pack_into(
            self._context.view,
            _CONFIGURATION_AT,
            *(self._events.address, _EVENTS - 1),
            *(load, cpus, len(mask), self._everywhere.address),
            *(self._directories.address, _DIRECTORIES - 1),
            *(self._names.address, self._names.size // _WORD - 1),
            *(self._callers.address, _CALLERS - 1),
            *(self._devices.address, self._devices.size // _WORD - 1),
            anybody,
        )

    # --- what is known

    def allow(self, directory: bytes, anchor: int, below: int, *, elsewhere: bool = False) -> None:
        """Below ``directory`` (canonical) no rule refuses what has ordinary names only. ``anchor``: a descriptor of the
        directory whose path is the first ``below`` bytes of it, less the slash (past its end where they are the same).
        ``elsewhere``: the kernel decides on what is below, and performs it."""
        if len(directory) > _LONGEST:
            return
        view, value = self._directories.view, hashed(directory)
        if self._listed >= _DIRECTORIES // 2:
            # They come again: the next call in each is the mediator's, which says so.
            view[:] = bytes(len(view))
            self._listed = 0
            for place, descriptor in self._elsewhere.items():
                self.allow(place, descriptor, len(place) + 1, elsewhere=True)
        at = value
        while any(view[at % _DIRECTORIES * _DIRECTORY.size :][:_WORD]):
            at += 1
        if elsewhere:
            self._elsewhere[directory] = anchor
        row = value, len(directory), anchor, below, elsewhere, directory
        _DIRECTORY.pack_into(view, at % _DIRECTORIES * _DIRECTORY.size, *row)
        self._listed += 1

    def allowed(self, directory: bytes) -> bool:
        """Whether ``allow`` has been called with it, and it has not been forgotten."""
        at = value = hashed(directory)
        while True:
            place = at % _DIRECTORIES * _DIRECTORY.size
            found, size, _, _, _, text = _DIRECTORY.unpack_from(self._directories.view, place)
            if not found:
                return False
            if found == value and text[:size] == directory:
                return True
            at += 1

    def know(self, pid: int) -> None:
        """What this thread does can be told afterwards."""
        self._caller[pid % _CALLERS] = pid

    def know_umask(self, pid: int) -> None:
        """Its umask is this process's, too."""
        self._caller[pid % _CALLERS] = pid | _UMASK

    def forget(self, pid: int) -> None:
        """Whatever is known of this thread."""
        self._caller[pid % _CALLERS] = 0

    def forget_all(self) -> None:
        """Whatever is known of any."""
        self._callers.view[:] = bytes(_CALLERS * 4)

    def forget_umasks(self) -> None:
        """What is known of umasks."""
        for at, pid in enumerate(self._caller):
            self._caller[at] = pid & ~_UMASK

    # --- answering

    def step(self, listener: int, others: Others | None, *, as_started: bool) -> int:
        """Receive a notification, and answer it or not: DONE, LEFT (``notification`` has it), or -1 where the caller died.
        With ``others``, go on for as long as the next one comes soon and nothing else does. ``events`` have what was
        answered. Raises OSError when the listener is gone.

        ``as_started``: this process's umask is that of all who call.
        """
        if listener != self._listener:
            self._listener, self._descriptor = listener, long(listener)
        self._context.view[_UMASK_AT] = as_started
        address, count = (others.address, others.count) if others is not None else (self._alone, self._alone)
        result = self._step(self._address, self._descriptor, address, count)
        if result < 0:
            if -result in (ENOENT, EINTR):
                return -1
            raise failure(-result, "SECCOMP_IOCTL_NOTIF_RECV")
        return result

    def notification(self) -> tuple[int, ...]:
        """As ``Listener.receive``."""
        return NOTIFICATION.unpack_from(self._context.view)

    def events(self) -> Iterator[tuple[float, int, int, int, tuple[bytes, ...], bytes, int]]:
        """What was answered and not read yet: (seconds by ``time.monotonic``, the thread's pid, the call's number, the errno that
        it got, 0, or -1 where the kernel is to say; the canonical paths that it named, of a link the new one first; and of a
        caller that was not known its program and its start in clock ticks since boot (``proc_pid_stat(5)``), else b"" and 0).

        Of an ``execve(2)``, which goes on in the kernel, the path is empty where nothing is there.

        While ``step`` runs, another thread may read what it has done so far; two may not at the same time, and all has to be
        read before the next step.
        """
        while self._read != int.from_bytes(self._context.view[_PUBLISHED_AT : _PUBLISHED_AT + _WORD], "little"):
            when, pid, nr, errno, first, second, start, size, one, other, program = _EVENT.unpack_from(
                self._events.view, self._read % _EVENTS * _EVENT.size
            )
            self._read += 1
            paths = (one[:first], other[:second]) if second else (one[:first],)
            yield when / 1e9, pid, nr, errno, paths, program[:size], start if size else 0
