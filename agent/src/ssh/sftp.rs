//! Files of the job, for `scp` and `sftp`: version 3 of the protocol, served by a helper inside the environment as the
//! user of the steps, so that a copy may do what a step may. It begins in the home folder, where clients take `~` to be.

use russh_sftp::{
    protocol::{Attrs, Data, File as Entry, FileAttributes, Handle, Name, OpenFlags, Status, StatusCode},
    server::{Handler, StatusReply},
};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, FileTimes, Metadata, OpenOptions, Permissions, ReadDir},
    io::{self, ErrorKind},
    os::unix::fs::{
        DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown,
        symlink,
    },
    path::Path,
    time::{Duration, UNIX_EPOCH},
};
use tokio::sync::oneshot;

/// The argument that makes this program the helper.
pub const NAME: &str = "__sftp";
/// Bytes that are read at once, at most: what clients ask for by themselves is less.
const PIECE: usize = 256 << 10;
/// Entries of a folder in one answer.
const ENTRIES: usize = 128;
/// Files and folders that are open at once.
const MOST: usize = 256;
/// The bits of a mode that somebody may set.
const MODE: u32 = 0o7777;

/// Runs the helper: answers on standard output what is asked on standard input, until that ends.
pub fn main() -> i32 {
    match serve() {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("sftp: {e}");
            1
        }
    }
}

fn serve() -> io::Result<()> {
    if let Some(home) = std::env::var_os("HOME") {
        // An environment without one begins where it is.
        let _ = std::env::set_current_dir(home);
    }
    tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
        let (alive, over) = oneshot::channel();
        let files = Files { open: HashMap::new(), count: 0, _alive: alive };
        russh_sftp::server::run(tokio::io::join(tokio::io::stdin(), tokio::io::stdout()), files).await;
        // The server owns the files, and lets go of them at its end.
        let _ = over.await;
        Ok(())
    })
}

/// What a handle stands for.
enum Open {
    File(File),
    Folder(ReadDir),
}

/// What one session has open.
struct Files {
    open: HashMap<String, Open>,
    /// Handles that were given: none is used twice.
    count: u64,
    _alive: oneshot::Sender<()>,
}

/// Why a request is refused, in the protocol's words and in the system's.
struct Refused(StatusReply);

impl From<Refused> for StatusReply {
    fn from(refused: Refused) -> Self {
        refused.0
    }
}

impl From<StatusCode> for Refused {
    fn from(code: StatusCode) -> Self {
        Self(code.into())
    }
}

impl From<io::Error> for Refused {
    fn from(e: io::Error) -> Self {
        let code = match e.kind() {
            ErrorKind::NotFound => StatusCode::NoSuchFile,
            ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            _ => StatusCode::Failure,
        };
        Self(code.with_message(e.to_string()))
    }
}

type Answer<T> = Result<T, Refused>;

impl Files {
    fn keep(&mut self, id: u32, open: Open) -> Answer<Handle> {
        if self.open.len() >= MOST {
            return Err(Refused(StatusCode::Failure.with_message("too many files are open")));
        }
        self.count += 1;
        let handle = self.count.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Answer<&File> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(no_handle()),
        }
    }
}

fn no_handle() -> Refused {
    Refused(StatusCode::Failure.with_message("this handle is not open"))
}

fn done(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Ok".into(), language_tag: "en".into() }
}

/// One name without what is known of it.
fn name(id: u32, path: &Path) -> Name {
    Name { id, files: vec![Entry::dummy(path.to_string_lossy())] }
}

fn attributes(of: &Metadata) -> FileAttributes {
    let seconds = |at: i64| u32::try_from(at).unwrap_or(0);
    FileAttributes {
        size: Some(of.len()),
        uid: Some(of.uid()),
        gid: Some(of.gid()),
        permissions: Some(of.mode()),
        atime: Some(seconds(of.atime())),
        mtime: Some(seconds(of.mtime())),
        ..FileAttributes::default()
    }
}

fn times(wanted: &FileAttributes) -> Option<FileTimes> {
    let at = |seconds: u32| UNIX_EPOCH + Duration::from_secs(u64::from(seconds));
    let (accessed, modified) = (wanted.atime?, wanted.mtime?);
    Some(FileTimes::new().set_accessed(at(accessed)).set_modified(at(modified)))
}

fn change_file(file: &File, wanted: &FileAttributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        fchown(file, wanted.uid, wanted.gid)?;
    }
    if let Some(mode) = wanted.permissions {
        file.set_permissions(Permissions::from_mode(mode & MODE))?;
    }
    times(wanted).map_or(Ok(()), |times| file.set_times(times))
}

fn change_path(path: &Path, wanted: &FileAttributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    // Before the mode: afterwards it may not be possible to open it.
    if let Some(times) = times(wanted) {
        let special = fs::metadata(path)?.file_type();
        // Opening one of these waits for its other end.
        if !(special.is_fifo() || special.is_socket()) {
            File::open(path)?.set_times(times)?;
        }
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        chown(path, wanted.uid, wanted.gid)?;
    }
    wanted.permissions.map_or(Ok(()), |mode| fs::set_permissions(path, Permissions::from_mode(mode & MODE)))
}

/// One after another, as they come: the files are near, and who asks has one client.
impl Handler for Files {
    type Error = Refused;

    fn unimplemented(&self) -> Refused {
        StatusCode::OpUnsupported.into()
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        wanted: FileAttributes,
    ) -> Answer<Handle> {
        let mut options = OpenOptions::from(flags);
        let file = options.mode(wanted.permissions.map_or(0o666, |mode| mode & MODE)).open(path)?;
        self.keep(id, Open::File(file))
    }

    async fn close(&mut self, id: u32, handle: String) -> Answer<Status> {
        self.open.remove(&handle).map(|_| done(id)).ok_or_else(no_handle)
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Answer<Data> {
        let most = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
        let mut data = vec![0; most];
        let n = self.file(&handle)?.read_at(&mut data, offset)?;
        if n == 0 && most > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(n);
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Answer<Status> {
        self.file(&handle)?.write_all_at(&data, offset)?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Answer<Attrs> {
        Ok(Attrs { id, attrs: attributes(&fs::symlink_metadata(path)?) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Answer<Attrs> {
        Ok(Attrs { id, attrs: attributes(&fs::metadata(path)?) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Answer<Attrs> {
        Ok(Attrs { id, attrs: attributes(&self.file(&handle)?.metadata()?) })
    }

    async fn setstat(&mut self, id: u32, path: String, wanted: FileAttributes) -> Answer<Status> {
        change_path(path.as_ref(), &wanted)?;
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, wanted: FileAttributes) -> Answer<Status> {
        change_file(self.file(&handle)?, &wanted)?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Answer<Handle> {
        let folder = fs::read_dir(path)?;
        self.keep(id, Open::Folder(folder))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Answer<Name> {
        let Some(Open::Folder(folder)) = self.open.get_mut(&handle) else { return Err(no_handle()) };
        let mut files = Vec::new();
        for entry in folder.take(ENTRIES) {
            let entry = entry?;
            // It may have gone since the folder was read.
            if let Ok(metadata) = entry.metadata() {
                files.push(Entry::new(entry.file_name().to_string_lossy(), attributes(&metadata)));
            }
        }
        if files.is_empty() { Err(StatusCode::Eof.into()) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, path: String) -> Answer<Status> {
        fs::remove_file(path)?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, wanted: FileAttributes) -> Answer<Status> {
        DirBuilder::new().mode(wanted.permissions.map_or(0o777, |mode| mode & MODE)).create(path)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Answer<Status> {
        fs::remove_dir(path)?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Answer<Name> {
        let path = if path.is_empty() { "." } else { &path };
        match fs::canonicalize(path) {
            Ok(path) => Ok(name(id, &path)),
            // Clients ask for what they are about to make.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(name(id, &std::path::absolute(path)?)),
            Err(e) => Err(e.into()),
        }
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Answer<Status> {
        // This version of the protocol replaces nothing.
        if fs::symlink_metadata(&to).is_ok() {
            return Err(Refused(StatusCode::Failure.with_message(format!("{to} exists"))));
        }
        fs::rename(from, to)?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Answer<Name> {
        Ok(name(id, &fs::read_link(path)?))
    }

    /// The two paths come the other way round than the protocol says: OpenSSH's client sends them so, and every server
    /// follows it.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Answer<Status> {
        symlink(target, link)?;
        Ok(done(id))
    }
}
