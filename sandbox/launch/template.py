"""The template: one lean process that makes sessions, is their parent, and writes their records.

It is executed, not forked, with an empty environment, so that nothing of whoever asks for a session is in its memory or in
that of what it forks (invariant 8). One thread, one loop. It serves the client that holds the other end of its first
socket, and, where it was given a listening socket, everyone of the same user who connects. When its client is gone, and
nobody can connect, it ends its sessions and itself.

Messages are ``marshal``led tuples in packets (``unix(7)`` SOCK_SEQPACKET). From a client: ``open`` (token, plan, about,
state directory; with the descriptor of the gateway's secrets, where it has any), ``attach`` (token, session), ``stop``
(session), ``keep`` (session: it stands by itself from now on). To a client: ``door`` (token, session, with the descriptor of
a socket to the session's first process), ``opened`` (token, session, enforcement), ``failed`` (token, phase, message, hint,
status), ``closed`` (session, why).

It also looks into the user's ledger, as long as anything runs under a grant out of a file: what is revoked there is taken
back here.
"""

from __future__ import annotations

import gc
import marshal
import posix
import select
import time
from errno import EAGAIN, EMFILE, EMSGSIZE

from remit.sandbox.audit.record import Record
from remit.sandbox.authority.errors import LaunchError, RemitError
from remit.sandbox.kernel import process, sockets
from remit.sandbox.kernel.call import one_heap
from remit.sandbox.launch import envelope
from remit.sandbox.launch.start import Child
from remit.sandbox.launch.zygote import Zygote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol

    from remit.sandbox.launch.request import Request
    from remit.sandbox.launch.way import Events
    from remit.sandbox.launch.wire import Wire

    class Ledger(Protocol):
        """What is asked of ``session.ledger.Ledger``."""

        def taken_back(self, ids: Iterable[str]) -> tuple[str, ...]: ...


CLIENT = 3
"""The descriptor of the first client's socket."""
LISTENER = 4
"""The descriptor of a listening socket, where there is one."""
_LARGEST_REPORT = 1 << 17
_DIED = "its first process died"
_LOOK = 0.5
"""Seconds between two looks into the ledger."""
_LAST_WORDS = 5.0
"""Seconds that a session's first process may go on talking when it is told to end."""
_SILENCE_MS = 1000
_SERVED = 256
"""Networks of calls that are over whose call is known, for what the gateway tells of their last connections."""
_CONTEXT = "context.json"
"""What a standing session's calls are measured against (``session.context``)."""
_MORE = "raise 'ulimit -n', or end what runs: nothing was started"
_UNWRITABLE = "the record cannot be written"
_UNCLEAR = "what its first process said cannot be understood"


def _become_zygote(request: Request) -> None:
    Zygote(request).run()


class Running:
    """A session that runs, or is about to."""

    __slots__ = (
        "calls",
        "child",
        "client",
        "closing",
        "held",
        "kept",
        "ledger",
        "on_full",
        "opened",
        "record",
        "served",
        "token",
    )

    def __init__(self, record: Record, child: Child, client: int, token: int, ledger: Ledger) -> None:
        self.record = record
        self.child = child
        self.client = client
        self.token = token
        self.opened = False
        self.kept = False
        """Its starter has given it a name that others find it by. Until then, nobody could stop it."""
        self.closing = ""
        self.on_full = ""
        self.ledger = ledger
        self.held: set[str] = set()
        """The ids of grants out of files that the session, or a call in it, runs under; of those that were not revoked."""
        self.calls: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Which call, with its grants, a network of its own serves or served: by the number that its sockets came under."""
        self.served: list[str] = []
        """The numbers of those that are over, oldest first. The gateway may have something to tell of them still."""

    def network(self, events: Events) -> None:
        """The gateway decided something, or is gone."""
        from remit.sandbox.audit import network  # only where there is a gateway

        if isinstance(events, str):
            self.record.event(network.gone(events))
            return
        now, mono = time.time(), time.monotonic()
        told: list[str] = []
        for event in events:
            call, chain = self.calls.get(str(event[0]), ("", ()))
            told.append(network.line(event, call, chain[-1] if chain else self.record.identifier, now, mono))
        self.record.lines(told)


class Template:
    """The loop."""

    def __init__(self, client: int, listener: int, ledger: Callable[[str], Ledger]) -> None:
        """``ledger``: makes the one below a state directory."""
        self._listener = listener
        self._ledger = ledger
        self._ledgers: dict[str, Ledger] = {}
        self._next_look = 0.0
        """When the ledger is to be looked into again, by the monotonic clock; 0 while nobody holds a grant out of a file."""
        self._poll = select.poll()
        # A call's own network comes with its rules, and with a socket for each thing it can do.
        self._mail = sockets.Receiver(_LARGEST_REPORT, sockets.MOST_DESCRIPTORS)
        self._sessions: dict[int, Running] = {}
        self._clients: set[int] = {client}
        self._owner = client
        self._poll.register(client, select.POLLIN)
        if listener >= 0:
            self._spare = posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC)
            self._poll.register(listener, select.POLLIN)

    def loop(self) -> None:
        """Until nobody can ask for anything any more."""
        while True:
            for descriptor, _ in self._poll.poll(_LOOK * 1000 if self._next_look else None):
                if descriptor in self._sessions:
                    self._from_session(self._sessions[descriptor])
                elif descriptor == self._listener:
                    self._accept()
                elif descriptor in self._clients:
                    self._from_client(descriptor)
                else:
                    self._from_network(descriptor)
            if self._next_look and time.monotonic() >= self._next_look:
                self._look()
            if self._listener >= 0 and not self._sessions and self._owner not in self._clients:
                return  # a listener is there for its sessions: the last one has ended

    # --- clients -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            client = sockets.accept(self._listener)
        except OSError:
            # It would be ready again at once, and so for ever: let go of one descriptor, take it in, and turn it away.
            posix.close(self._spare)
            try:
                posix.close(sockets.accept(self._listener))
            except OSError:
                pass  # whoever it was has gone
            finally:
                self._spare = posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC)
            return
        if sockets.peer(client)[1] not in (posix.geteuid(), 0):
            posix.close(client)
            return
        self._clients.add(client)
        self._poll.register(client, select.POLLIN)

    def _from_client(self, client: int) -> None:
        came: list[int] = []
        try:
            data, came = self._mail.receive(client)
            if data == envelope.MARK and not came:
                # There was no room for the descriptor that holds it.
                self._say(client, "failed", 0, "launch", posix.strerror(EMFILE), _MORE, 125)
                return
            if data == envelope.MARK:
                data = envelope.content(came.pop())
        except OSError:
            data = b""
        if not data:
            self._gone(client)
            return
        try:
            self._asked(client, came, *marshal.loads(data))
        except Exception as error:
            # No message of a client's is worth the sessions of the others.
            _complain(error)
            self._gone(client)
        finally:
            for descriptor in came:
                posix.close(descriptor)

    def _asked(self, client: int, came: list[int], kind: str, *values: Any) -> None:
        if kind == "open" and client == self._owner:
            self._open(client, came, *values)
        elif kind == "attach":
            self._attach(client, *values)
        elif kind == "keep" and client == self._owner:
            running = self._find(values[0])
            if running is not None:
                running.kept = True
        elif kind == "stop":
            running = self._find(values[0])
            if running is not None:
                why = self._close(running, "stopped")
                if client != running.client:
                    self._say(client, "closed", values[0], why)

    def _gone(self, client: int) -> None:
        self._clients.discard(client)
        self._poll.unregister(client)
        posix.close(client)
        if client == self._owner:
            for running in [one for one in self._sessions.values() if self._listener < 0 or not one.kept]:
                self._close(running, "the client has gone")
            if self._listener < 0:
                process.leave(0)

    def _say(self, client: int, *message: Any, descriptors: tuple[int, ...] = ()) -> None:
        if client not in self._clients:
            return
        try:
            sockets.send(client, marshal.dumps(message), descriptors, wait=False)
        except OSError as error:
            if error.errno == EAGAIN:
                return  # who does not read is told nothing; the sockets' ends tell the rest

    def _open(self, client: int, came: list[int], token: int, wire: Wire, about: dict[str, object], state: str) -> None:
        """``came``: the file of the gateway's secrets, if there are any. It is passed on and never read here."""
        audit = next((op for op in wire[5] if op[0] == "record"), ("record", "writes", "deny", ()))
        try:
            record = Record(state, wire[1], {**about, "audit": audit[1]}, audit[3])
        except OSError as error:
            self._say(
                client,
                "failed",
                token,
                "record",
                f"the session's record cannot be written: {error.strerror}",
                "a session without a record is not started: make the directory writable, or set XDG_STATE_HOME",
                125,
            )
            return
        made: list[Running] = []
        try:
            child = Child(
                wire,
                _become_zygote,
                on_network=lambda events: made[0].network(events),
                secrets=came.pop if came else None,
            )
            child.go(record.canary)
        except (RemitError, OSError) as error:
            failure = error if isinstance(error, RemitError) else LaunchError(str(error.strerror), hint=_MORE)
            try:
                record.ended({"failed": str(failure), "phase": failure.phase})
            except OSError:
                pass  # the failure that there is says more
            self._say(client, "failed", token, failure.phase, str(failure), failure.hint, failure.exit_status)
            return
        running = Running(record, child, client, token, self._ledger_of(state))
        running.on_full = audit[2]
        self._hold(running, about.get("grants", ()))
        made.append(running)
        if child.way is not None:
            child.way.watch(self._poll)
        self._sessions[child.control] = running
        self._poll.register(child.control, select.POLLIN)

        def reach(_: object = None) -> None:
            if not self._give_door(client, token, running):
                self._close(running, "nobody could reach it")

        # Not before the first process has been told to go on, which waits for a gateway that makes certificates.
        if child.way is None:
            reach()
        else:
            child.way.certified(reach)

    def _attach(self, client: int, token: int, session: str) -> None:
        running = self._find(session)
        if running is None:
            self._say(client, "failed", token, "session", f"no session {session} here", "remit session list", 125)
        elif running.child.way is None:
            self._give_door(client, token, running)
        else:
            running.child.way.certified(lambda _: self._give_door(client, token, running))

    def _give_door(self, client: int, token: int, running: Running) -> bool:
        """A way for the client to the session's first process. False: there is none, and the client has heard why."""
        session = running.record.identifier
        try:
            ours, theirs = sockets.packet_pair()
        except OSError as error:
            self._say(client, "failed", token, "launch", str(error.strerror), _MORE, 125)
            return False
        try:
            sockets.send(running.child.control, b"door", (theirs,))
            self._say(client, "door", token, session, descriptors=(ours,))
        except OSError:
            self._say(client, "failed", token, "session", f"session {session} has ended", "start another", 125)
            return False
        finally:
            posix.close(ours)
            posix.close(theirs)
        return True

    def _find(self, session: str) -> Running | None:
        for running in self._sessions.values():
            if running.record.identifier == session:
                return running
        return None

    # --- the ledger ----------------------------------------------------------------------------------------------------

    def _ledger_of(self, state: str) -> Ledger:
        found = self._ledgers.get(state)
        if found is None:
            found = self._ledgers[state] = self._ledger(state)
        return found

    def _hold(self, running: Running, grants: Any) -> None:
        """From now on what runs under these is ended when they are revoked; what they were in the meantime is seen at once."""
        running.held.update(grants)
        if running.held:
            self._next_look = self._next_look or time.monotonic()

    def _look(self) -> None:
        """Tell each session what was revoked of what it holds."""
        holders = [running for running in self._sessions.values() if running.held]
        self._next_look = time.monotonic() + _LOOK if holders else 0.0
        for running in holders:
            for grant in running.ledger.taken_back(running.held):
                running.held.discard(grant)
                try:
                    sockets.send(running.child.control, b"revoke " + grant.encode())
                except OSError:
                    break  # it is ending

    # --- sessions ------------------------------------------------------------------------------------------------------

    def _heard(self, control: int) -> tuple[bytes, list[int]]:
        """One message. Raises OSError: nobody is there, or (EMFILE, EMSGSIZE) it could not be received."""
        data, came = self._mail.receive(control)
        if self._mail.cut:
            for descriptor in came:
                posix.close(descriptor)
            raise OSError(EMSGSIZE, posix.strerror(EMSGSIZE))
        if data != envelope.MARK:
            return data, came
        if not came:
            raise OSError(EMFILE, posix.strerror(EMFILE))
        return envelope.content(came.pop()), came

    def _from_session(self, running: Running) -> None:
        try:
            data, came = self._heard(running.child.control)
        except OSError as error:
            data, came = b"", []
            if error.errno == EMFILE:
                running.closing = _UNWRITABLE  # what happened is not known
            elif error.errno == EMSGSIZE:
                running.closing = _UNCLEAR
        if not data:
            self._close(running, running.closing or _DIED)
            return
        try:
            kind, *values = marshal.loads(data)
            if came:
                self._take_sockets(running, values, came)
            else:
                getattr(self, f"_on_{kind}")(running, *values)
        except OSError:
            self._close(running, _UNWRITABLE)
        except Exception as error:
            # Whatever it was meant to say, no other session is to end for it.
            _complain(error)
            self._close(running, _UNCLEAR)

    def _take_sockets(self, running: Running, values: list[Any], came: list[int]) -> None:
        """Of the session's network, or of a call's own: then its number and its rules come with them."""
        roles, *call = values
        way = running.child.way
        if way is None:
            for descriptor in came:
                posix.close(descriptor)
        elif call:
            number, rules, variables = call
            way.hold(roles, came, self._poll, str(number), rules, variables)
        else:
            way.hold(roles, came, self._poll)

    def _from_network(self, descriptor: int) -> None:
        for running in self._sessions.values():
            way = running.child.way
            if way is not None and way.owns(descriptor):
                way.ready(descriptor, self._poll)
                return

    def _on_serves(self, running: Running, number: int, call: str, chain: tuple[str, ...]) -> None:
        running.calls[str(number)] = (call, chain)

    def _on_served(self, running: Running, number: int) -> None:
        if running.child.way is not None:
            running.child.way.drop(str(number), self._poll)
        if str(number) in running.calls:
            running.served.append(str(number))
        if len(running.served) > _SERVED:
            running.calls.pop(running.served.pop(0), None)

    def _on_ready(self, running: Running, enforcement: dict[str, str]) -> None:
        running.opened = True
        running.record.enforced(enforcement)
        self._say(running.client, "opened", running.token, running.record.identifier, enforcement)

    def _on_failed(self, running: Running, phase: str, message: str, hint: str, status: int) -> None:
        running.closing = message
        running.record.event({"kind": "failed", "phase": phase, "message": message})
        self._say(running.client, "failed", running.token, phase, message, hint, status)

    def _on_limit(self, running: Running, limit: str) -> None:
        running.closing = f"the {limit} limit"

    def _on_watch(self, running: Running, grants: tuple[str, ...]) -> None:
        self._hold(running, grants)
        self._next_look = time.monotonic()

    def _on_policy(self, running: Running, policy: int, digest: str, beyond: dict[str, object]) -> None:
        running.record.event({"kind": "policy", "policy": policy, "digest": digest, "beyond": beyond})

    def _on_actions(self, running: Running, noted: list[tuple[str, str, tuple[Any, ...]]]) -> None:
        record = running.record
        missing = record.lost
        try:
            at = 0
            while at < len(noted):
                call, grant, _ = noted[at]
                end = at
                while end < len(noted) and noted[end][:2] == (call, grant):
                    end += 1
                record.actions([action for _, _, action in noted[at:end]], call, grant)
                at = end
        except OSError:
            if running.on_full == "stop":
                raise
            if not missing:
                sockets.send(running.child.control, b"hold")
        else:
            if missing:
                sockets.send(running.child.control, b"go on")

    def _on_began(self, running: Running, *began: Any) -> None:
        running.record.event(_began(*began))
        executed = _executed(*began)
        if executed:
            self._on_actions(running, executed)

    def _on_finished(
        self,
        running: Running,
        noted: list[tuple[str, str, tuple[Any, ...]]],
        began: tuple[Any, ...],
        call: str,
        *how: Any,
    ) -> None:
        """``began``: if that was not told before."""
        if running.child.way is not None:
            running.child.way.hear()
        ended = _returned(call, *how)
        if not running.record.lost:
            try:
                if began:
                    running.record.whole(_began(*began), [*_executed(*began), *noted], ended)
                else:
                    running.record.whole(None, noted, ended)
            except OSError:
                pass  # one after the other, each of which has its own way to fail
            else:
                return
        if began:
            self._on_began(running, *began)
        if noted:
            self._on_actions(running, noted)
        running.record.event(ended)

    def _on_refused(self, running: Running, call: str, phase: str, message: str, hint: str, status: int) -> None:
        running.record.event({"kind": "refused", "call": call, "phase": phase, "message": message})

    def _on_broken(self, running: Running, policy: str, phase: str, message: str, hint: str, status: int) -> None:
        running.record.event({"kind": "refused", "policy": policy, "phase": phase, "message": message})

    def _drain(self, running: Running) -> None:
        """Tell the session's first process to end, and write down what it still has to say: of calls that ended, and of
        actions that waited to be told together. Not for longer than a moment: it is killed anyway."""
        control = running.child.control
        poll = select.poll()
        deadline = time.monotonic() + _LAST_WORDS
        try:
            sockets.end_writing(control)
            poll.register(control, select.POLLIN)
            while time.monotonic() < deadline and poll.poll(_SILENCE_MS):
                data, _ = self._heard(control)
                if not data:
                    return
                kind, *values = marshal.loads(data)
                if kind in ("actions", "began", "finished", "policy", "refused"):
                    getattr(self, f"_on_{kind}")(running, *values)
        except Exception as error:  # as in ``_from_session``
            _complain(error)

    def _close(self, running: Running, why: str) -> str:
        control = running.child.control
        del self._sessions[control]
        self._poll.unregister(control)
        self._drain(running)
        if running.child.way is not None:
            running.child.way.leave(self._poll)
        memory = running.child.out_of_memory()
        running.child.kill()  # one that has not ended by now is stuck, or was stopped
        status = running.child.close()
        if posix.WIFSIGNALED(status) and why == _DIED:
            why = f"{_DIED} (signal {posix.WTERMSIG(status)})"
        why = "the memory limit" if memory else why
        try:
            running.record.ended({"why": why})
        except OSError:
            why = _UNWRITABLE
        try:
            posix.unlink(f"{running.record.path}/{_CONTEXT}")  # with what variables were set to: for calls only
        except OSError:
            pass  # it does not stand, or its directory is gone
        self._say(running.client, "closed", running.record.identifier, why)
        running.child.way = None  # it tells ``running`` what happens: a cycle, and nothing is collected here
        return why


def _began(
    when: float, call: str, pid: int, argv: list[bytes], policy: int, chain: tuple[str, ...], _executed: Any
) -> dict[str, object]:
    words = [word.decode(errors="surrogateescape") for word in argv]
    return {"time": when, "kind": "call", "call": call, "pid": pid, "argv": words, "grants": chain, "policy": policy}


def _executed(
    _when: float, call: str, _pid: int, _argv: list[bytes], _policy: int, chain: tuple[str, ...], executed: Any
) -> list[tuple[str, str, tuple[Any, ...]]]:
    """The command's exec among the actions, where the mediator did not note it."""
    return [] if executed is None else [(call, chain[-1] if chain else "", executed)]


def _returned(call: str, status: int, limit: str, cpu: float, memory: int, denials: int) -> dict[str, object]:
    result = {"status": status, "limit": limit or None, "cpu": cpu, "memory": memory, "denials": denials}
    return {"kind": "returned", "call": call, **result}


def main(ledger: Callable[[str], Ledger]) -> None:
    """What the executed interpreter runs. Does not return. ``ledger``: makes the one below a state directory."""
    status = 1
    try:
        process.set_name(b"remit-template")
        posix.chdir("/")
        arguments = posix.fstat(LISTENER) if _is_open(LISTENER) else None
        # One heap for every thread: each would keep one of its own, for as long as the session lives.
        one_heap()
        gc.collect()
        gc.freeze()
        gc.disable()
        # It is woken when a command begins and when it ends: the CPU is the command's.
        process.stand_back()
        Template(CLIENT, LISTENER if arguments is not None else -1, ledger).loop()
        status = 0
    except Exception as error:
        _complain(error)  # the sessions end with this process
    finally:
        process.leave(status)


def _complain(error: Exception) -> None:
    """Nobody reads it but with REMIT_DEBUG."""
    try:
        posix.write(2, f"remit-template: {type(error).__name__}: {error}\n".encode(errors="replace"))
    except OSError:
        pass


def _is_open(descriptor: int) -> bool:
    try:
        posix.fstat(descriptor)
    except OSError:
        return False
    return True
