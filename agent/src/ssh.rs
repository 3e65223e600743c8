//! SSH into a job that was rerun with it (execution §26): an own server, because images have none. It listens for such
//! jobs only, takes the keys of who asked and no passwords, and runs what is asked of it as steps run. Its host key is
//! made for the job and dies with it.

mod connection;
pub mod forward;
mod session;
pub mod sftp;
mod shell;

use crate::{
    control::{Control, Stop},
    output::Output,
    own_step::OwnStep,
    steps::{Reports, Runner, go_duration},
};
use agent_api::{SshListen, SshSession};
use anyhow::Context;
use connection::Connection;
use ids::InstanceId;
use model::ssh::{Access, Limits, Over, Sessions};
use russh::{
    MethodKind, MethodSet,
    keys::{
        HashAlg, PrivateKey, PublicKey,
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
    server,
};
use shell::Shell;
use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

/// The number of the step that says how to connect: after the variables, before the configured ones.
const ENABLE: u32 = 100;
/// Connections at once, those that have not shown a key yet included.
const MOST: usize = 32;
/// A connection that is dead is noticed after three of these.
const ALIVE: Duration = Duration::from_secs(30);
/// How long who connects may take to show a key.
const LOGIN: Duration = Duration::from_secs(60);
/// What still has to be told when the job ends comes within this time, or never.
const FAREWELL: Duration = Duration::from_secs(5);

/// A session, as the step that waits shows it.
#[derive(Clone, Debug)]
enum News {
    Opened { key: String, from: SocketAddr },
    Closed { from: SocketAddr },
}

/// What is known of sessions.
#[derive(Debug)]
struct Known {
    open: usize,
    /// When the last one ended.
    idle_since: Instant,
    /// What was not shown yet.
    news: Vec<News>,
}

/// What all connections of a job share.
struct Door {
    runner: Arc<Runner>,
    /// Where it listens.
    address: SocketAddr,
    keys: Vec<PublicKey>,
    shell: Shell,
    known: watch::Sender<Known>,
    /// Told to end.
    closing: CancellationToken,
    work: TaskTracker,
    /// Why, for those who are connected.
    farewell: Mutex<String>,
}

/// A job that can be entered. Dropped, it cannot be any more.
pub(crate) struct Ssh {
    door: Arc<Door>,
    accepting: JoinHandle<()>,
    /// How to connect.
    text: String,
}

impl Ssh {
    /// Listens, and shows how to connect in a step of its own. `None`: nobody can enter, which the step or the spin-up
    /// says; the job runs all the same.
    pub(crate) async fn open(
        listen: Option<&SshListen>,
        access: &Access,
        runner: &Arc<Runner>,
        (output, reports): (&Output, &Arc<Reports>),
    ) -> io::Result<Option<Self>> {
        if access.keys.is_empty() {
            // Said where the environment is described: a step for it is what a user without keys does not see.
            return Ok(None);
        }
        let mut step = OwnStep::open(output, reports, ENABLE, "Enable SSH", false)?;
        match Self::begin(listen, access, runner).await {
            Ok(this) => {
                step.write(this.text.as_bytes())?;
                step.end("success")?;
                Ok(Some(this))
            }
            Err(e) => {
                step.note(&format!("Nobody can enter this job: {e:#}"))?;
                step.end("failed")?;
                Ok(None)
            }
        }
    }

    async fn begin(
        listen: Option<&SshListen>,
        access: &Access,
        runner: &Arc<Runner>,
    ) -> anyhow::Result<Self> {
        let listen = listen.context(
            "SSH is switched off on the machine that runs it. The server's configuration switches it on by \
             `[executors.ssh] enabled = true`, a runner's own by `runner.ssh.advertise_addr`",
        )?;
        let (mut keys, mut shown) = (Vec::new(), Vec::new());
        for line in &access.keys {
            let key = PublicKey::from_openssh(line).context("a public key cannot be read")?;
            shown.push(format!("    {} {}", key.fingerprint(HashAlg::Sha256), key.comment()));
            keys.push(key);
        }
        let host_key = host_key()?;
        let listener = bind(listen).await?;
        let address = listener.local_addr()?;
        let port = address.port();
        let text = format!(
            "{} can enter this job with the keys below, as any user:\n\n    $ ssh -p {port} {}\n\n\
             ED25519 key fingerprint of the host is\n    {}\nand the key itself\n    {}\n\nKeys that are accepted:\n{}\n",
            access.login.as_deref().unwrap_or("Who asked for this rerun"),
            advertised(listen),
            host_key.public_key().fingerprint(HashAlg::Sha256),
            host_key.public_key().to_openssh().context("the host key cannot be shown")?.trim_end(),
            shown.join("\n"),
        );
        let shell = Shell::find(runner).await?;
        let door = Arc::new(Door {
            runner: Arc::clone(runner),
            address,
            keys,
            shell,
            known: watch::Sender::new(Known { open: 0, idle_since: Instant::now(), news: Vec::new() }),
            closing: CancellationToken::new(),
            work: TaskTracker::new(),
            farewell: Mutex::default(),
        });
        let mut methods = MethodSet::empty();
        methods.push(MethodKind::PublicKey);
        let config = server::Config {
            server_id: russh::SshId::Standard("SSH-2.0-gantry".into()),
            methods,
            keys: vec![host_key],
            // Who has no key here is told at once: keys cannot be guessed, and waiting would hide nothing.
            auth_rejection_time: Duration::ZERO,
            inactivity_timeout: None,
            keepalive_interval: Some(ALIVE),
            nodelay: true,
            ..server::Config::default()
        };
        let accepting = tokio::spawn(accept(Arc::clone(&door), listener, Arc::new(config)));
        Ok(Self { door, accepting, text })
    }

    /// Stays until nobody was connected for long enough, until the limit in all, or until the task is to stop. A step of
    /// its own shows for what.
    pub(crate) async fn wait(&self, (output, reports): (&Output, &Arc<Reports>)) -> io::Result<()> {
        let control = &self.door.runner.control;
        let number = ENABLE + 1 + u32::try_from(self.door.runner.spec.definition.steps.len()).unwrap_or(0);
        let mut step = OwnStep::open(output, reports, number, "Wait for SSH", false)?;
        let limits = Limits {
            idle: Duration::from_millis(control.timing.ssh_idle_ms),
            total: Duration::from_millis(control.timing.ssh_total_ms),
        };
        step.write(self.text.as_bytes())?;
        step.note(&format!(
            "The steps have ended. The environment stays until nobody was connected for {}, for {} at most, or until the \
             job is canceled.",
            go_duration(limits.idle),
            go_duration(limits.total)
        ))?;
        let ended = Instant::now();
        let mut known = self.door.known.subscribe();
        let (status, why) = loop {
            // Shown once each; that they were shown is no news.
            let mut news = Vec::new();
            let sessions = {
                let known = known.borrow_and_update();
                match known.open {
                    0 => Sessions::None { since: known.idle_since.saturating_duration_since(ended) },
                    _ => Sessions::Open,
                }
            };
            self.door.known.send_if_modified(|known| {
                news = std::mem::take(&mut known.news);
                false
            });
            for news in news {
                step.note(&match news {
                    News::Opened { key, from } => format!("A session from {from} began, with the key {key}"),
                    News::Closed { from } => format!("The session from {from} ended"),
                })?;
            }
            let (after, over) = model::ssh::end(limits, sessions);
            tokio::select! {
                changed = known.changed() => {
                    if changed.is_err() {
                        break ("success", "The environment is gone.".to_owned());
                    }
                }
                () = tokio::time::sleep_until(ended + after) => break ("success", match over {
                    Over::Idle => format!("Nobody was connected for {}.", go_duration(limits.idle)),
                    Over::Total => format!("The environment stayed for {}.", go_duration(limits.total)),
                }),
                why = control.until_stopped() => break match why {
                    Stop::Canceled => ("canceled", "The job was canceled.".to_owned()),
                    Stop::TimedOut => ("timedout", "The job's time is up.".to_owned()),
                    Stop::Interrupted | Stop::LeaseLost | Stop::Stale => {
                        ("infrastructure_fail", "The agent was told to end.".to_owned())
                    }
                },
            }
        };
        step.note(&why)?;
        *self.door.farewell.lock().unwrap_or_else(PoisonError::into_inner) = why;
        step.end(status)
    }

    /// Lets nobody in any more, and those who are in out.
    pub(crate) async fn close(self) {
        self.accepting.abort();
        self.door.closing.cancel();
        self.door.work.close();
        if tokio::time::timeout(FAREWELL, self.door.work.wait()).await.is_err() {
            tracing::warn!("sessions did not end in time");
        }
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.accepting.abort();
        self.door.closing.cancel();
    }
}

impl Door {
    /// The key that this one is, of those that are accepted.
    fn accepted(&self, key: &PublicKey) -> bool {
        self.keys.iter().any(|accepted| accepted.key_data() == key.key_data())
    }

    fn farewell(&self) -> String {
        match &*self.farewell.lock().unwrap_or_else(PoisonError::into_inner) {
            why if why.is_empty() => "the job ends".to_owned(),
            why => why.clone(),
        }
    }

    fn opened(&self, key: &str, from: SocketAddr) {
        self.known.send_modify(|known| {
            known.open += 1;
            known.news.push(News::Opened { key: key.to_owned(), from });
        });
    }

    fn closed(&self, from: SocketAddr) {
        self.known.send_modify(|known| {
            known.open = known.open.saturating_sub(1);
            known.idle_since = Instant::now();
            known.news.push(News::Closed { from });
        });
    }

    /// Tells the suite, which keeps who came and went.
    async fn tell(&self, session_id: InstanceId, open: bool, key: &str, from: SocketAddr) {
        let control: &Control = &self.runner.control;
        let session = SshSession { session_id, open, key: key.to_owned(), from: from.to_string() };
        if let Err(e) = control.post("ssh", &session).await {
            tracing::warn!(error = %e, open, "a session was not recorded");
        }
    }
}

/// Made anew for each job, kept in memory only. From the kernel's random numbers, as the task's own key.
fn host_key() -> anyhow::Result<PrivateKey> {
    let mut seed = Zeroizing::new([0u8; 32]);
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(seed.as_mut())).context("no random numbers")?;
    let pair = Ed25519Keypair::from_seed(&seed);
    PrivateKey::new(KeypairData::Ed25519(pair), "").context("no host key could be made")
}

/// Takes the first port that is free. Tasks of one machine try different ones first.
async fn bind(listen: &SshListen) -> anyhow::Result<TcpListener> {
    let address: IpAddr =
        listen.address.parse().with_context(|| format!("{} is no address to listen on", listen.address))?;
    let ports = u32::from(listen.last_port.saturating_sub(listen.first_port)) + 1;
    let start = std::process::id() % ports;
    let mut refused = None;
    for at in 0..ports {
        let port = listen.first_port + u16::try_from((start + at) % ports).unwrap_or(0);
        match TcpListener::bind((address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(e) => refused = Some(e),
        }
    }
    let why = refused.map(|e| e.to_string()).unwrap_or_default();
    anyhow::bail!(
        "no port of {address} from {} to {} can be listened on: {why}",
        listen.first_port,
        listen.last_port
    )
}

/// The host as people reach it.
fn advertised(listen: &SshListen) -> String {
    let anywhere = listen.address.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    match listen.advertise.as_str() {
        "" if anywhere => nix::unistd::gethostname()
            .map_or_else(|_| listen.address.clone(), |name| name.to_string_lossy().into_owned()),
        "" => listen.address.clone(),
        host => host.to_owned(),
    }
}

async fn accept(door: Arc<Door>, listener: TcpListener, config: Arc<server::Config>) {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "a connection could not be accepted");
                // Too many open files, say: that does not pass at once.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%from, "there are too many connections; this one is closed");
            continue;
        };
        let (shared, config) = (Arc::clone(&door), Arc::clone(&config));
        door.work.spawn(async move {
            Connection::serve(shared, stream, from, config).await;
            drop(place);
        });
    }
}
