//! A client with one connection, on which any bytes can be sent. Failures panic; [`Client::wire`] returns errors
//! instead.

use std::net::{SocketAddr, TcpStream};

use super::wire::{Message, Wire};

/// A connection to the proxy.
pub struct Client {
    /// The connection itself.
    pub wire: Wire,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client { wire: Wire::new(TcpStream::connect(address).expect("the proxy accepts connections")) }
    }

    /// Sends bytes unchanged.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes).expect("the proxy reads");
    }

    /// Sends a request, with `Host: test` and a `Content-Length` if there is a body; a given field replaces these.
    pub fn send_request(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) {
        let has = |name: &str| fields.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !has("host") {
            head += "Host: test\r\n";
        }
        fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !body.is_empty() && !has("transfer-encoding") && !has("content-length") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.send([head.as_bytes(), b"\r\n", body].concat());
    }

    /// Reads the next response, interim or final.
    pub fn read(&mut self) -> Message {
        self.read_for("GET")
    }

    /// Reads the next response to a request of this method.
    pub fn read_for(&mut self, method: &str) -> Message {
        self.wire.read_response(method).expect("a response")
    }

    /// Sends a request and returns its final response.
    pub fn request(&mut self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Message {
        self.send_request(method, target, fields, body);
        loop {
            let response = self.read_for(method);
            if !matches!(response.status(), 100 | 102..=199) {
                return response;
            }
        }
    }

    /// Sends a `GET`.
    pub fn get(&mut self, target: &str) -> Message {
        self.request("GET", target, &[], b"")
    }
}
