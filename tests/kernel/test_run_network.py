from tests.kernel.net_harness import internet
def test_x(world):
    with internet(world) as net:
        w = net.world
        print(w.outsides({"a": "socket.create_connection(('granted.example.com', 80), 3)"}))
        r = w.shell("curl -sS -m 5 http://granted.example.com:8080/; echo $?; curl -sS -m 5 --noproxy '*' http://granted.example.com:8080/; echo $?; curl -sS -m 5 http://other.example.com:8080/; echo $?; curl -sS -m 5 --noproxy '*' http://203.0.113.20:8080/;echo $?; getent ahosts granted.example.com; getent ahosts other.example.com", "--connect", "granted.example.com:8080")
        print(r.stdout, r.stderr)
        print(net.seen())
        print(w.records()[-1].joinpath("events.jsonl").read_text())
