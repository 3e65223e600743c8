//! Who holds a port, from `/proc`: an error that says "in use" should say by whom.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
};

/// The process that listens on the address, as far as this user may see it: `nginx (process 812)`.
pub fn holder(address: SocketAddr) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| listeners(&text, address.port()))
        .collect();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        // Another user's processes cannot be looked into.
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        for file in files.flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            if inode.is_some_and(|inode| inodes.iter().any(|known| known == inode)) {
                let program = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                return Some(format!("{} (process {pid})", program.trim()));
            }
        }
    }
    None
}

/// Inodes of the sockets that listen on a port, out of a table such as `/proc/net/tcp`.
fn listeners(table: &str, port: u16) -> Vec<String> {
    let wanted = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(3) == Some(&"0A") && fields.get(1)?.ends_with(&wanted);
            listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

/// The next port after the wanted one that is free now.
pub fn next_free(address: SocketAddr) -> Option<u16> {
    (address.port().checked_add(1)?..address.port().saturating_add(100))
        .find(|port| TcpListener::bind((address.ip(), *port)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_names_its_process_and_another_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let who = holder(address).unwrap();
        assert!(who.contains(&format!("process {}", std::process::id())), "{who}");
        assert_ne!(next_free(address).unwrap(), address.port());
    }
}
