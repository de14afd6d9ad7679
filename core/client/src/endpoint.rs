//! Where a daemon listens.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::ClientError;

/// The control socket's file name inside the daemon's home.
pub const SOCKET_NAME: &str = "control.sock";

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket on this machine.
    Unix(PathBuf),
    /// `host:port` of a daemon that listens on TCP.
    Tcp(String),
}

impl Endpoint {
    /// The control socket of the daemon with this home.
    pub fn in_home(home: &Path) -> Self {
        Self::Unix(home.join(SOCKET_NAME))
    }

    /// Reads what people type after `--connect`: `unix:PATH`, a path with a slash in it,
    /// `http://HOST:PORT` or `HOST:PORT`.
    ///
    /// # Errors
    /// When the text is none of these; `https` is refused by name, since it is not spoken.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let refuse = |reason: &'static str| Err(ClientError::Endpoint { endpoint: text.to_owned(), reason });
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                refuse("the path is missing")
            } else {
                Ok(Self::Unix(PathBuf::from(path)))
            };
        }
        if text.starts_with("https:") {
            return refuse("https is not spoken here; tunnel instead: ssh -L 8777:127.0.0.1:8777 HOST");
        }
        let address = text.strip_prefix("http://");
        if address.is_none() && text.contains('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let address = address.unwrap_or(text).trim_end_matches('/');
        let Some((host, port)) = address.rsplit_once(':') else {
            return refuse("expected HOST:PORT, http://HOST:PORT or unix:PATH");
        };
        let host_is_plain = host.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c));
        if host.is_empty() || !host_is_plain {
            return refuse("the host is not a name or an address");
        }
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self::Tcp(format!("{host}:{port}"))),
            _ => refuse("the port is not a number between 1 and 65535"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_after_connect_is_understood() {
        let unix = |path: &str| Some(Endpoint::Unix(PathBuf::from(path)));
        let tcp = |address: &str| Some(Endpoint::Tcp(address.to_owned()));
        for (text, expected) in [
            ("unix:/run/d.sock", unix("/run/d.sock")),
            ("/run/d.sock", unix("/run/d.sock")),
            ("./d.sock", unix("./d.sock")),
            ("http://forge:8777", tcp("forge:8777")),
            ("http://forge:8777/", tcp("forge:8777")),
            ("127.0.0.1:8777", tcp("127.0.0.1:8777")),
            ("[::1]:8777", tcp("[::1]:8777")),
            ("unix:", None),
            ("forge", None),
            ("forge:", None),
            ("forge:0", None),
            ("forge:99999", None),
            (":8777", None),
            ("a b:80", None),
            ("https://forge:8777", None),
        ] {
            assert_eq!(Endpoint::parse(text).ok(), expected, "{text}");
        }
    }
}
