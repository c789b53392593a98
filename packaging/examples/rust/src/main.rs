//! Ask the refit-agent service for an engine from Rust, with the standard library and serde_json.
//!
//!     cargo run -- /opt/app/bundle denoiser
//!
//! Prints the engine's path on standard output and progress on standard error. Exit code 0: done; 1: the service
//! says that it cannot be made; 8: there is no service (run `refit-agent path BUNDLE MODEL`, which needs none).

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{json, Value};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [bundle, model] = args.as_slice() else {
        eprintln!("usage: refit-agent-example BUNDLE MODEL");
        return ExitCode::from(2);
    };
    let socket = socket_path();
    match ensure(&socket, bundle, model) {
        Ok(Ok(engine)) => {
            println!("{}", engine["path"].as_str().unwrap_or_default());
            // ... load the engine here; the lease keeps it from eviction until then ...
            if let Some(lease) = engine["lease"]["id"].as_str() {
                let _ = call(&socket, "DELETE", &format!("/v1/leases/{lease}"), None);
            }
            ExitCode::SUCCESS
        }
        Ok(Err(problem)) => {
            eprintln!("{}", problem["detail"].as_str().unwrap_or("it failed"));
            eprintln!("{}", problem["hint"].as_str().unwrap_or_default());
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("no service at {}: {error}", socket.display());
            ExitCode::from(8)
        }
    }
}

/// The engine, or the problem that the service reports.
fn ensure(socket: &Path, bundle: &str, model: &str) -> io::Result<Result<Value, Value>> {
    // The bundle's path must be absolute. With pid, the lease ends with this process at the latest.
    let bundle = std::path::absolute(bundle)?;
    let body = json!({"bundle": bundle, "model": model, "ttl_s": 300, "pid": std::process::id()});
    for line in call(socket, "POST", "/v1/engines:ensure", Some(&body))? {
        let document: Value = serde_json::from_str(&line?)?;
        if document["path"].is_string() {
            return Ok(Ok(document)); // a hit, or the last event
        }
        if document["detail"].is_string() {
            return Ok(Err(document)); // a problem, or the last event
        }
        let percent = 100.0 * document["fraction"].as_f64().unwrap_or(0.0);
        eprintln!("{percent:3.0}% {}", document["text"].as_str().unwrap_or_default());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended in the middle"))
}

/// The lines of the answer's body, as they come. HTTP/1.0: the body ends with the connection, without chunks.
fn call(
    socket: &Path,
    method: &str,
    target: &str,
    body: Option<&Value>,
) -> io::Result<impl Iterator<Item = io::Result<String>>> {
    let mut stream = UnixStream::connect(socket)?;
    // The service says something every two seconds: ten without a word mean that it hangs.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {target} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut lines = BufReader::new(stream).lines();
    for line in lines.by_ref() {
        if line?.is_empty() {
            break; // the end of the headers
        }
    }
    Ok(lines)
}

fn socket_path() -> PathBuf {
    if let Some(given) = env::var_os("REFIT_AGENT_SOCKET") {
        return given.into();
    }
    if let Some(home) = env::var_os("REFIT_AGENT_HOME").filter(|home| !home.is_empty()) {
        return Path::new(&home).join("run/agent.sock");
    }
    let named = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(runtime) = named("XDG_RUNTIME_DIR") {
        return runtime.join("refit-agent/agent.sock");
    }
    // The user that this process acts as owns /proc/self.
    if let Ok(me) = fs::metadata("/proc/self").map(|own| own.uid()) {
        let user = PathBuf::from(format!("/run/user/{me}"));
        if fs::metadata(&user).is_ok_and(|found| found.uid() == me) {
            return user.join("refit-agent/agent.sock");
        }
    }
    let home = named("HOME").unwrap_or_default();
    named("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("refit-agent/run/agent.sock")
}
