"""A WebSocket server: `websocket_server.py ADDRESS`. Echoes messages, and executes some as commands."""

import sys

from websockets.sync.server import serve


def talk(socket):
    for message in socket:
        match message:
            case "close":
                return socket.close(4001, "as you like")
            case "ping":
                socket.ping().wait(30)
                socket.send("pong")
            case "path":
                socket.send(socket.request.path)
            case "headers":
                socket.send("\n".join(f"{name.lower()}: {value}" for name, value in socket.request.headers.raw_items()))
            case "break":
                socket.socket.close()
                return
            case _:
                socket.send(message)
    print("closed", socket.protocol.close_code, flush=True)


def subprotocol(_, offered):
    return "chat" if "chat" in offered else None


def main(address):
    host, port = address.rsplit(":", 1)
    with serve(talk, host, int(port), max_size=None, select_subprotocol=subprotocol, ping_interval=None) as server:
        print("ready", flush=True)
        server.serve_forever()


main(*sys.argv[1:])
