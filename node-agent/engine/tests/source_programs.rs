//! Programs as they are installed: nothing in them knows of a migration.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod source_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use engine::source::{External, Namespaces, Source, TreeSpec};
use source_support::{Cgroup, Copy, wait_until};

struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(program: &str, args: &[&str], cgroup: &Cgroup) -> Server {
    sys::fds::cloexec_from(3).unwrap();
    // The shell moves itself into the cgroup before it becomes the program.
    let script = format!("echo $$ > {}/cgroup.procs; exec setsid \"$0\" \"$@\"", cgroup.0.display());
    let child = Command::new("sh")
        .args(["-c", &script, program])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Server(child)
}

fn spec(pid: u32, cgroup: &Cgroup, namespaces: Namespaces) -> TreeSpec {
    TreeSpec {
        root: i32::try_from(pid).unwrap(),
        cgroup: Some(cgroup.0.clone()),
        externals: Vec::<External>::new(),
        terminals: Vec::new(),
        namespaces,
        mounts: engine::source::MountNamespaces::default(),
    }
}

fn back_and_forth(spec: &TreeSpec, mut works: impl FnMut()) {
    for _ in 0..10 {
        let mut source = Source::attach(spec).unwrap();
        works();
        let mut copy = Copy::default();
        source.shape().unwrap();
        source.round(&mut copy).unwrap();
        works();
        source.shape().unwrap();
        source.round(&mut copy).unwrap();
        let begin = std::time::Instant::now();
        let report = source.freeze().unwrap();
        let frozen = begin.elapsed();
        source.shape().unwrap();
        let last = source.last_pages(&mut copy).unwrap();
        let pages = begin.elapsed();
        let image = source.capture().unwrap();
        eprintln!(
            "freeze {frozen:?} pages {:?} capture {:?} {report:?} {last:?}",
            pages - frozen,
            begin.elapsed() - pages
        );
        assert_eq!(image.processes.len(), image.shape.processes.len());
        source.abort().unwrap();
        works();
    }
}

#[test]
fn redis() {
    let cgroup = Cgroup::new("redis");
    let port = port();
    let server = start("redis-server", &["--port", &port.to_string(), "--save", ""], &cgroup);
    wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut n = 0;
    back_and_forth(&spec(server.0.id(), &cgroup, Namespaces::Host), || {
        n += 1;
        client.write_all(b"INCR x\r\n").unwrap();
        let expected = format!(":{n}\r\n");
        let mut answer = vec![0; expected.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, expected.as_bytes());
    });
}

#[test]
fn nginx() {
    let cgroup = Cgroup::new("nginx");
    let port = port();
    let dir = std::env::temp_dir().join(format!("gantry-nginx-{port}"));
    std::fs::create_dir_all(&dir).unwrap();
    let config = format!(
        "daemon off; user root; pid {0}/pid; error_log {0}/error; worker_processes 2; events {{}}\n\
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
         uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 'hello'; }} }} }}",
        dir.display()
    );
    std::fs::write(dir.join("conf"), config).unwrap();
    let server = start("nginx", &["-c", dir.join("conf").to_str().unwrap()], &cgroup);
    wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    back_and_forth(&spec(server.0.id(), &cgroup, Namespaces::Host), || {
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            let mut part = [0; 512];
            let got = client.read(&mut part).unwrap();
            assert!(got > 0);
            answer.extend_from_slice(&part[..got]);
        }
    });
    drop(server);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// In namespaces of its own, under a root directory of its own, as pid 1.
#[test]
fn redis_in_its_own_namespaces() {
    let cgroup = Cgroup::new("own");
    let args = [
        "--fork",
        "--kill-child",
        "--pid",
        "--mount-proc",
        "--net",
        "--ipc",
        "--uts",
        "redis-server",
        "--save",
        "",
        "--port",
        "0",
        "--unixsocket",
        "",
    ];
    let socket = std::env::temp_dir().join(format!("gantry-own-{}", std::process::id()));
    let mut args: Vec<&str> = args.to_vec();
    let last = args.len() - 1;
    args[last] = socket.to_str().unwrap();
    let server = start("unshare", &args, &cgroup);
    wait_until(|| socket.exists());
    let outer = server.0.id();
    let text = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    let root: u32 = text.trim().parse().unwrap();
    // unshare itself stays outside.
    sys::cgroup::add_process(cgroup.0.parent().unwrap(), i32::try_from(outer).unwrap()).unwrap();
    let spec = spec(root, &cgroup, Namespaces::Own);
    back_and_forth(&spec, || {});
    let mut source = Source::attach(&spec).unwrap();
    source.freeze().unwrap();
    let image = source.capture().unwrap();
    assert_eq!(image.shape.processes[0].pid, 1);
    assert_eq!(image.processes[0].cwd, std::env::current_dir().unwrap().to_str().unwrap());
    source.abort().unwrap();
    let _ = std::fs::remove_file(socket);
}
