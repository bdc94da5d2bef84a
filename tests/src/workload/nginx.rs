//! nginx with four workers and one file.

use std::fs;
use std::net::SocketAddr;

use anyhow::Result;

use crate::cluster::Cluster;

/// Where the file is.
pub const PATH: &str = "/file";

const CONFIGURATION: &str = "worker_processes 4; daemon off; error_log stderr; pid /data/nginx.pid;\n\
    events { worker_connections 64; }\n\
    http { access_log off; client_body_temp_path /data/b; proxy_temp_path /data/p; fastcgi_temp_path /data/f;\n\
    uwsgi_temp_path /data/u; scgi_temp_path /data/s; keepalive_requests 1000000;\n\
    server { listen 8080; root /data; } }\n";

/// So many times four bytes that look random.
#[must_use]
pub fn content(words: u32) -> Vec<u8> {
    (0..words).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect()
}

/// Starts it on the first node; answers where it serves.
///
/// # Errors
/// When it does not start.
pub fn start(cluster: &Cluster, name: &str, ip: &str, content: &[u8]) -> Result<SocketAddr> {
    let command = ["/usr/sbin/nginx", "-c", "/data/nginx.conf", "-e", "stderr", "-g", "user root;"];
    let bundle = cluster.make_bundle(name, &["/data"], &command)?;
    fs::write(bundle.join("rootfs/data/nginx.conf"), CONFIGURATION)?;
    fs::write(bundle.join("rootfs/data/file"), content)?;
    cluster.start_bundle(name, "node-a", &format!("{ip}/24"), &bundle)?;
    let address = format!("{ip}:8080").parse()?;
    cluster.wait_for_port(address)?;
    Ok(address)
}
