//! A daemon in a home of its own, driven the way people and scripts drive it.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::Home;

/// The longest any single step of a test may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Targets made by the plugin that misbehaves: each scheme is one way to go wrong.
pub const FAULTY: &str = "[serve]\nport = 0\n[measure]\nenabled = false\n";

/// A running daemon; killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    /// Where it lives.
    pub home: Home,
    process: Child,
}

impl Daemon {
    /// Starts a daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(home: Home) -> Result<Self> {
        let process = spawn(&home)?;
        let mut daemon = Self { home, process };
        daemon.until_it_answers()?;
        Ok(daemon)
    }

    /// A daemon with the plugin that misbehaves; every dropped model is forged by each of these schemes of it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn misbehaving(schemes: &[&str], configuration: &str) -> Result<Self> {
        Self::start(misbehaving_home(schemes, configuration)?)
    }

    /// Starts a daemon whose staging directory and library lie on a disk of their own: a file system in memory, which
    /// only the daemon sees, mounted and prepared by these shell commands in the directory `$DISK`.
    ///
    /// # Errors
    /// When it does not start; `Ok(None)` where nobody may mount anything, as in some containers.
    pub fn on_a_disk(home: Home, prepare: &str) -> Result<Option<Self>> {
        let disk = home.path().join("disk");
        std::fs::create_dir_all(&disk)?;
        let within = |script: &str| {
            let mut command = std::process::Command::new("unshare");
            command.args(["--mount", "--map-root-user", "sh", "-ec", script]).env("DISK", &disk);
            command
        };
        let possible = within("mount -t tmpfs -o size=1m tmpfs $DISK").stderr(Stdio::null()).status();
        if !possible.is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let daemon = home.command(&["daemon"]);
        let mut command = within(&format!("{prepare}; exec \"$0\" daemon"));
        command.arg(daemon.get_program());
        for (key, value) in daemon.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let process = logged(&home, command)?;
        let mut daemon = Self { home, process };
        daemon.until_it_answers()?;
        Ok(Some(daemon))
    }

    fn until_it_answers(&mut self) -> Result<()> {
        let started = Instant::now();
        while self.home.json(&["status"]).is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("the daemon ended with {status}");
            }
            if started.elapsed() > PATIENCE {
                bail!("the daemon does not answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether the process that was started is still the one that runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None)) && self.home.json(&["status"]).is_ok()
    }

    /// Kills it without warning and starts another in the same home.
    ///
    /// # Errors
    /// When the other does not start.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.home)?;
        self.until_it_answers()
    }

    /// The watched folder.
    pub fn models(&self) -> PathBuf {
        self.home.path().join("models")
    }

    /// Copies a file or directory into the watched folder.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn drop_in(&self, from: &Path, name: &str) -> Result<PathBuf> {
        let to = self.models().join(name);
        copy(from, &to).with_context(|| format!("{} → {}", from.display(), to.display()))?;
        Ok(to)
    }

    /// Asks again until `found` finds what it looks for in the answer.
    ///
    /// # Errors
    /// When that takes too long; the last answer is told.
    pub fn wait<T>(&self, arguments: &[&str], found: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            let answer = self.home.json(arguments)?;
            if let Some(found) = found(&answer) {
                return Ok(found);
            }
            if started.elapsed() > PATIENCE {
                bail!("{arguments:?} never showed what was waited for: {answer:#}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a model's job for a target is in one of these states, and gives the job.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_job(&self, target: Option<&str>, states: &[&str]) -> Result<Value> {
        self.wait(&["jobs"], |jobs| {
            let jobs = jobs["jobs"].as_array()?;
            let job = jobs.iter().find(|job| job["target"].as_str() == target)?;
            states.contains(&job["state"].as_str()?).then(|| job.clone())
        })
    }

    /// Waits until a model is in this state, and gives it.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_model(&self, name: &str, state: &str) -> Result<Value> {
        self.wait(&["models"], |models| {
            let model = models["models"].as_array()?.iter().find(|model| model["name"] == name)?;
            (model["state"] == state).then(|| model.clone())
        })
    }

    /// The workers that answer requests: the `model` value of each and its process.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn served(&self) -> Result<Vec<(String, u32)>> {
        let (_, text) = self.control("GET", "/api/control/served", None)?;
        let served: Value = serde_json::from_str(&text)?;
        let models = served["models"].as_array().cloned().unwrap_or_default();
        let ready = models.iter().filter_map(|model| {
            Some((model["name"].as_str()?.to_owned(), u32::try_from(model["pid"].as_u64()?).ok()?))
        });
        Ok(ready.collect())
    }

    /// Asks the control API again until `found` finds what it looks for in the answer.
    ///
    /// # Errors
    /// When that takes too long; the last answer is told.
    pub fn watch<T>(&self, path: &str, found: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            let answer = serde_json::from_str(&self.control("GET", path, None)?.1)?;
            if let Some(found) = found(&answer) {
                return Ok(found);
            }
            if started.elapsed() > PATIENCE {
                bail!("{path} never showed what was waited for: {answer:#}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Artifacts in the library, by their directories.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn library(&self) -> Result<Vec<PathBuf>> {
        let mut artifacts = Vec::new();
        for shelf in std::fs::read_dir(self.home.path().join("library"))? {
            for artifact in std::fs::read_dir(shelf?.path())? {
                artifacts.push(artifact?.path());
            }
        }
        Ok(artifacts)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A home with the plugin that misbehaves, where every dropped model is forged by each of these schemes of it.
///
/// # Errors
/// When it cannot be written.
pub fn misbehaving_home(schemes: &[&str], configuration: &str) -> Result<Home> {
    let names: Vec<String> = schemes.iter().map(|scheme| format!("faulty-{scheme}")).collect();
    let configuration = format!("{configuration}\n{FAULTY}\n[targets]\ndefault = {names:?}\n");
    let home = Home::faulty(&configuration)?;
    let target = |scheme: &&str| {
        format!("[[target]]\nname = \"faulty-{scheme}\"\nformat = \"faulty\"\nscheme = \"{scheme}\"\n")
    };
    let targets = schemes.iter().map(target).collect::<Vec<_>>().concat();
    std::fs::create_dir_all(home.path().join("targets"))?;
    std::fs::write(home.path().join("targets/faulty.toml"), targets)?;
    Ok(home)
}

/// A daemon that serves `model:counts`, which counts upwards from the last token it was given, and `model:<way>` for
/// each way to go wrong, which it does in its third forward pass.
///
/// # Errors
/// When it does not start or publishes nothing.
pub fn counting(ways: &[&str]) -> Result<Daemon> {
    counting_with(ways, "")
}

/// The same with further settings of `[serve]`.
///
/// # Errors
/// When it does not start or publishes nothing.
pub fn counting_with(ways: &[&str], serve: &str) -> Result<Daemon> {
    let target = |name: &str, artifact: &str| {
        format!(
            "[[target]]\nname = \"{name}\"\nformat = \"faulty\"\nscheme = \"obey\"\n\
             options = {{ artifact = \"{artifact}\" }}\n"
        )
    };
    let names: Vec<&str> = ways.iter().copied().chain(["counts"]).collect();
    let settings = FAULTY.replace("[serve]", &format!("[serve]\n{serve}"));
    let home = Home::faulty(&format!("{settings}\n[targets]\ndefault = {names:?}\n"))?;
    let mut targets = target("counts", "obey");
    targets.extend(ways.iter().map(|way| target(way, way)));
    std::fs::create_dir_all(home.path().join("targets"))?;
    std::fs::write(home.path().join("targets/faulty.toml"), targets)?;
    let daemon = Daemon::start(home)?;
    write_model(&daemon.models().join("model"))?;
    for target in names {
        let job = daemon.wait_for_job(Some(target), &["succeeded", "failed", "blocked"])?;
        ensure!(job["state"] == "succeeded", "{job:#}");
    }
    Ok(daemon)
}

/// Sends a signal, such as `KILL`, to a process.
///
/// # Errors
/// When it is not there.
pub fn signal(name: &str, pid: u32) -> Result<()> {
    let sent = std::process::Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    ensure!(sent.success(), "process {pid} cannot be sent SIG{name}");
    Ok(())
}

/// Asks a server and gives status line with headers, and body.
///
/// # Errors
/// When it does not answer, or its answer breaks off.
pub fn exchange(
    address: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
    headers: &[(&str, &str)],
) -> Result<(String, String)> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let headers: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let headers = headers.concat();
    // At once: who is refused by the first line cannot send the rest.
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((head.to_owned(), body.to_owned()))
}

fn spawn(home: &Home) -> Result<Child> {
    logged(home, home.command(&["daemon"]))
}

fn logged(home: &Home, mut daemon: std::process::Command) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(home.path().join("daemon.log"))?;
    daemon.stdout(Stdio::null()).stderr(log).spawn().context("drophammer daemon")
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_file() {
        return std::fs::copy(from, to).map(drop);
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Copies the trained fixture, as far as it makes a model.
///
/// # Errors
/// When it cannot be written.
pub fn write_model(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let fixture = crate::fixture("shakespeare-llama");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), directory.join(name)).with_context(|| name.to_owned())?;
    }
    Ok(())
}

impl Daemon {
    /// Asks the OpenAI-compatible server over TCP, as any client would, and gives status and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        self.ask_with(method, path, body, &[])
    }

    /// The same with further headers.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<(u16, String)> {
        let (head, body) = self.exchange(method, path, body, headers)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        Ok((status, body))
    }

    /// Asks and gives status line with headers, and body.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<(String, String)> {
        exchange(&self.address()?, method, path, body, headers)
    }

    /// Where the OpenAI-compatible server listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn address(&self) -> Result<String> {
        let status = self.home.json(&["status"])?;
        let url = status["server"]["url"].as_str().context("the server is off")?;
        Ok(url.trim_start_matches("http://").trim_end_matches("/v1").to_owned())
    }

    /// Asks and reads the answer's document.
    ///
    /// # Errors
    /// When it does not answer, or not in JSON.
    pub fn ask_json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let (status, text) = self.ask(method, path, body)?;
        Ok((status, serde_json::from_str(&text).with_context(|| text.clone())?))
    }

    /// Asks for a stream and gives the data of its events.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask_stream(&self, path: &str, body: &Value) -> Result<Vec<String>> {
        let (_, text) = self.ask("POST", path, Some(body))?;
        Ok(text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect())
    }
}

impl Daemon {
    /// Asks over the control socket and gives status and body; of a stream of events, what came until the first.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn control(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        use std::io::{BufRead as _, Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(self.home.path().join("control.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = body.filter(|body| !body.is_null()).map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: drophammer\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = std::io::BufReader::new(stream);
        let mut head = String::new();
        while answer.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") {}
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        let mut text = String::new();
        if head.contains("text/event-stream") {
            while !text.contains("data:") && answer.read_line(&mut text)? > 0 {}
        } else {
            answer.read_to_string(&mut text)?;
        }
        Ok((status, text))
    }
}
