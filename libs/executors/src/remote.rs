//! The agent's end of the connection to a container's first process.

use crate::{
    Command, Error, Facts, Input, Io, Output, Process, Resize, Signal,
    frames::{Decoder, Frame, Kind, WINDOW},
    wire::{Ends, Event, Exec, Guest, Request, Spawn},
};
use std::{
    collections::HashMap,
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::{Semaphore, mpsc, oneshot, watch},
};

type Frames = mpsc::UnboundedSender<Frame>;

#[derive(Default)]
struct Waiting {
    answered: Option<oneshot::Sender<Result<bool, String>>>,
    exited: Option<oneshot::Sender<i32>>,
    written: Option<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: HashMap<u64, Waiting>,
    outputs: HashMap<(u64, bool), mpsc::UnboundedSender<Vec<u8>>>,
    inputs: HashMap<u64, Arc<Semaphore>>,
    /// The container is gone: nothing is answered any more.
    over: bool,
}

/// A container's first process, as the agent speaks to it: [`crate::Environment`] for engines to build on.
pub struct Remote {
    frames: Frames,
    shared: Arc<Mutex<Shared>>,
    next: AtomicU64,
    close: watch::Sender<bool>,
}

impl Remote {
    /// Speaks to the process over its standard output and input, and waits until it stands. Of the facts `bin`
    /// and `isolation` are for the caller to fill in.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection ends before that.
    pub async fn open(
        mut reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(Self, Facts), Error> {
        let mut decoder = Decoder::default();
        let guest = greeting(&mut reader, &mut decoder).await?;
        let (frames, waiting) = mpsc::unbounded_channel();
        let (close, closed) = watch::channel(false);
        let shared: Arc<Mutex<Shared>> = Arc::default();
        tokio::spawn(write(writer, waiting, closed));
        tokio::spawn(read(reader, decoder, Arc::clone(&shared), frames.clone()));
        let facts = Facts {
            home: guest.home,
            data: guest.data,
            user: guest.user,
            environment: guest.environment,
            ..Facts::default()
        };
        Ok((Self { frames, shared, next: AtomicU64::new(1), close }, facts))
    }

    /// As [`crate::Environment::spawn`].
    ///
    /// # Errors
    /// As there.
    pub async fn spawn(&self, command: Command) -> Result<Process, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (exited, exit) = oneshot::channel();
        let (all, written) = oneshot::channel();
        let output = self.output(id, Kind::Output);
        let (mut errors, mut input) = (None, None);
        let mut resize: Option<Resize> = None;
        let io = match command.io {
            Io::Terminal => Ends::FramedTty { input: false },
            Io::Interactive => Ends::FramedTty { input: true },
            Io::Session(size) => {
                input = Some(self.input(id));
                let frames = self.frames.clone();
                resize = Some(Box::new(move |size| say(&frames, &Request::Resize { id, size })));
                Ends::FramedSession { size }
            }
            Io::Pipes => {
                errors = Some(self.output(id, Kind::Errors));
                input = Some(self.input(id));
                Ends::FramedPipes
            }
        };
        let exec = Exec {
            identity: None,
            inner: None,
            dir: command.dir,
            make_dir: command.make_dir,
            controls: matches!(command.io, Io::Session(_)),
        };
        let spawn = Spawn { id, argv: command.argv, env: command.env, io, exec };
        self.ask(id, Some((exited, all)), &Request::Spawn(spawn)).await?;
        Ok(Process { id, output, errors, input, resize, exit, written })
    }

    /// As [`crate::Environment::signal`].
    pub fn signal(&self, id: u64, signal: Signal) {
        self.say(&Request::Signal { id, signal: signal as i32 });
    }

    /// As [`crate::Environment::write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let request = Request::Write { id, path: path.to_owned(), text: text.to_owned(), mode };
        self.ask(id, None, &request).await.map(|_| ())
    }

    /// As [`crate::Environment::exists`].
    ///
    /// # Errors
    /// As there.
    pub async fn exists(&self, path: &Path) -> Result<bool, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.ask(id, None, &Request::Exists { id, path: path.to_owned() }).await
    }

    /// Whether the kernel has ended a process of the container for want of memory since this was asked before.
    pub async fn ran_out_of_memory(&self) -> bool {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.ask(id, None, &Request::OutOfMemory { id }).await.unwrap_or(false)
    }

    /// Closes the connection: the process ends, and the container with it.
    pub fn close(&self) {
        self.close.send_replace(true);
    }

    fn say(&self, request: &Request) {
        say(&self.frames, request);
    }

    async fn ask(
        &self,
        id: u64,
        ending: Option<(oneshot::Sender<i32>, oneshot::Sender<()>)>,
        request: &Request,
    ) -> Result<bool, Error> {
        let (answered, answer) = oneshot::channel();
        {
            let mut shared = lock(&self.shared);
            if shared.over {
                return Err(Error::Lost);
            }
            let (exited, written) = ending.unzip();
            shared.waiting.insert(id, Waiting { answered: Some(answered), exited, written });
        }
        self.say(request);
        match answer.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(message)) => {
                let mut shared = lock(&self.shared);
                shared.inputs.remove(&id);
                shared.outputs.retain(|(of, _), _| *of != id);
                Err(Error::Start(message))
            }
            Err(_) => Err(Error::Lost),
        }
    }

    fn output(&self, id: u64, kind: Kind) -> Output {
        let (bytes, arriving) = mpsc::unbounded_channel();
        lock(&self.shared).outputs.insert((id, kind == Kind::Errors), bytes);
        let frames = self.frames.clone();
        Box::new(Incoming { id, kind, arriving, current: Vec::new(), at: 0, frames })
    }

    fn input(&self, id: u64) -> Input {
        let (ours, theirs) = tokio::io::duplex(WINDOW / 4);
        let window = Arc::new(Semaphore::new(WINDOW));
        lock(&self.shared).inputs.insert(id, Arc::clone(&window));
        tokio::spawn(pump(id, ours, window, self.frames.clone()));
        Box::new(theirs)
    }
}

fn say(frames: &Frames, request: &Request) {
    if let Ok(body) = serde_json::to_vec(request) {
        // Nobody takes it: the container is gone, and whoever waits is told.
        let _ = frames.send(Frame { kind: Kind::Said, id: 0, body });
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn greeting(reader: &mut (impl AsyncRead + Unpin), decoder: &mut Decoder) -> Result<Guest, Error> {
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        if let Some(frame) = decoder.next()? {
            return match serde_json::from_slice(&frame.body) {
                Ok(Event::Guest(guest)) => Ok(guest),
                Ok(Event::Unable { message }) => Err(Error::Isolation(message)),
                Ok(_) | Err(_) => Err(Error::Lost),
            };
        }
        match reader.read(&mut buffer).await? {
            0 => return Err(Error::Lost),
            n => decoder.push(&buffer[..n]),
        }
    }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut waiting: mpsc::UnboundedReceiver<Frame>,
    mut closed: watch::Receiver<bool>,
) {
    let send = async {
        while let Some(frame) = waiting.recv().await {
            if writer.write_all(&frame.encode()).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = send => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
    let _ = writer.shutdown().await;
}

async fn read(
    mut reader: impl AsyncRead + Unpin,
    mut decoder: Decoder,
    shared: Arc<Mutex<Shared>>,
    frames: Frames,
) {
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        match decoder.next() {
            Ok(Some(frame)) => {
                take(&shared, &frames, frame);
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the container's first process cannot be understood");
                break;
            }
        }
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => decoder.push(&buffer[..n]),
        }
    }
    // Whoever still waits learns that the container is gone.
    *lock(&shared) = Shared { over: true, ..Shared::default() };
}

fn take(shared: &Mutex<Shared>, frames: &Frames, frame: Frame) {
    let mut shared = lock(shared);
    match frame.kind {
        Kind::Said => match serde_json::from_slice(&frame.body) {
            Ok(event) => hear(&mut shared, event),
            Err(error) => tracing::warn!(%error, "an event cannot be read"),
        },
        Kind::Output | Kind::Errors => {
            let key = (frame.id, frame.kind == Kind::Errors);
            let length = frame.body.len();
            if length == 0 {
                shared.outputs.remove(&key);
            } else if shared.outputs.get(&key).is_none_or(|bytes| bytes.send(frame.body).is_err()) {
                // Nobody reads it any more, and the command must not wait for that.
                let _ = frames.send(Frame::credit(credit_of(frame.kind), frame.id, length));
            }
        }
        Kind::InputCredit => {
            if let Some(window) = shared.inputs.get(&frame.id) {
                window.add_permits(frame.credited().min(WINDOW));
            }
        }
        Kind::Input | Kind::OutputCredit | Kind::ErrorsCredit => {}
    }
}

fn hear(shared: &mut Shared, event: Event) {
    let answer = |shared: &mut Shared, id: u64, answer: Result<bool, String>| {
        if let Some(waiting) = shared.waiting.get_mut(&id)
            && let Some(answered) = waiting.answered.take()
        {
            let _ = answered.send(answer);
        }
        if shared.waiting.get(&id).is_some_and(|waiting| waiting.written.is_none()) {
            shared.waiting.remove(&id);
        }
    };
    match event {
        Event::Spawned { id } => answer(shared, id, Ok(true)),
        Event::Done { id, found } => answer(shared, id, Ok(found)),
        Event::Failed { id, message } => {
            answer(shared, id, Err(message));
            shared.waiting.remove(&id);
        }
        Event::Exited { id, code } => {
            if let Some(exited) = shared.waiting.get_mut(&id).and_then(|waiting| waiting.exited.take()) {
                let _ = exited.send(code);
            }
            if let Some(window) = shared.inputs.remove(&id) {
                window.close();
            }
        }
        Event::Written { id } => {
            if let Some(written) = shared.waiting.remove(&id).and_then(|waiting| waiting.written) {
                let _ = written.send(());
            }
        }
        Event::Unable { message } => tracing::warn!(message, "a request was not understood"),
        Event::Ready | Event::Guest(_) => {}
    }
}

fn credit_of(kind: Kind) -> Kind {
    if kind == Kind::Errors { Kind::ErrorsCredit } else { Kind::OutputCredit }
}

/// Carries what is written to a command's input, as far as it is read there.
async fn pump(id: u64, mut from: impl AsyncRead + Unpin, window: Arc<Semaphore>, frames: Frames) {
    let mut buffer = vec![0u8; 32 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        let wanted = u32::try_from(n).unwrap_or(u32::MAX);
        match window.acquire_many(wanted).await {
            Ok(permits) => permits.forget(),
            // The command has ended.
            Err(_) => return,
        }
        if frames.send(Frame { kind: Kind::Input, id, body: buffer[..n].to_vec() }).is_err() || n == 0 {
            return;
        }
    }
}

/// One stream of a command. What has been read is credited, so that as much may follow.
struct Incoming {
    id: u64,
    kind: Kind,
    arriving: mpsc::UnboundedReceiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    frames: Frames,
}

impl Incoming {
    fn credit(&self, bytes: usize) {
        let _ = self.frames.send(Frame::credit(credit_of(self.kind), self.id, bytes));
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at == self.current.len() {
            match ready!(self.arriving.poll_recv(context)) {
                Some(bytes) => (self.current, self.at) = (bytes, 0),
                None => return Poll::Ready(Ok(())),
            }
        }
        let rest = &self.current[self.at..];
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        self.at += n;
        if self.at == self.current.len() {
            self.credit(self.current.len());
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.arriving.close();
        if self.at < self.current.len() {
            self.credit(self.current.len());
        }
        while let Ok(bytes) = self.arriving.try_recv() {
            self.credit(bytes.len());
        }
    }
}
