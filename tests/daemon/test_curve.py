"""CURVE and ZAP on bare sockets: closed unless somebody opens."""

from collections.abc import Iterator

import pytest
import zmq
from visaged.daemon.curve import ClientKey, Socket, ZapHandler, encrypt_client, encrypt_server, new_pair


@pytest.fixture
def context() -> Iterator["zmq.Context[Socket]"]:
    with zmq.Context() as made:
        yield made


def is_let_in(context: "zmq.Context[Socket]", zap: ZapHandler | None, *, answer: bool = True) -> bool:
    """Whether a message of a client with the right server key arrives."""
    pair = new_pair()
    with context.socket(zmq.PULL) as server, zmq.Context() as elsewhere, elsewhere.socket(zmq.PUSH) as client:
        encrypt_server(server, pair, "results")
        server.bind("tcp://127.0.0.1:*")
        client.setsockopt(zmq.LINGER, 0)
        encrypt_client(client, ClientKey("c", new_pair(), pair.public))
        client.connect(server.getsockopt_string(zmq.LAST_ENDPOINT))
        client.send(b"hello")
        for _ in range(20):
            if zap is not None:
                zap.poll(lambda domain, public: answer)
            if server.poll(25):
                return True
    return False


def test_without_a_handler_nobody_may_in(context: "zmq.Context[Socket]") -> None:
    assert not is_let_in(context, None)


@pytest.mark.parametrize("answer", [True, False])
def test_the_handler_decides(context: "zmq.Context[Socket]", answer: bool) -> None:
    zap = ZapHandler(context)

    try:
        assert is_let_in(context, zap, answer=answer) is answer
    finally:
        zap.close()
