//! Writing a [`Layout`]: any tensor, in any order, from any thread, and again after an interruption.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Fault, Result};
use crate::layout::Layout;
use crate::tensor::TensorDecl;

/// The files of a [`Layout`], open for writing. Shared between threads: every write names its place.
#[derive(Debug)]
pub struct PlacedFiles {
    directory: PathBuf,
    layout: Layout,
    files: Vec<(PathBuf, File)>,
}

impl PlacedFiles {
    /// Creates the files in `directory`, which must exist: their whole space is reserved, so that a disk that is
    /// too small says so now, and headers are written. Existing files of the same names are replaced.
    ///
    /// # Errors
    /// [`Error::Io`], with the code `disk_full` where the space cannot be reserved.
    pub fn create(directory: &Path, layout: Layout) -> Result<Self> {
        let mut files = Vec::with_capacity(layout.files.len());
        for plan in &layout.files {
            let path = directory.join(&plan.name);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).open(&path);
            let file = file.map_err(Error::io(&path, "create"))?;
            reserve(&file, plan.len).map_err(Error::io(&path, "reserve space for"))?;
            file.write_all_at(&plan.header, 0).map_err(Error::io(&path, "write the header of"))?;
            files.push((path, file));
        }
        for (name, content) in &layout.side_files {
            let path = directory.join(name);
            write_synced(&path, content)?;
        }
        Ok(Self { directory: directory.to_owned(), layout, files })
    }

    /// Opens the files an interrupted [`Self::create`] left, if they are of this very layout: all present, of
    /// the planned lengths, with the planned headers. `None` when they are not.
    ///
    /// # Errors
    /// [`Error::Io`] when existing files cannot be opened or read.
    pub fn resume(directory: &Path, layout: Layout) -> Result<Option<Self>> {
        let mut files = Vec::with_capacity(layout.files.len());
        for plan in &layout.files {
            let path = directory.join(&plan.name);
            let file = match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::io(&path, "open")(error)),
            };
            let len = file.metadata().map_err(Error::io(&path, "examine"))?.len();
            let mut header = vec![0; plan.header.len()];
            if len != plan.len {
                return Ok(None);
            }
            file.read_exact_at(&mut header, 0).map_err(Error::io(&path, "read the header of"))?;
            if header != plan.header {
                return Ok(None);
            }
            files.push((path, file));
        }
        for (name, content) in &layout.side_files {
            if std::fs::read(directory.join(name)).ok().as_ref() != Some(content) {
                return Ok(None);
            }
        }
        Ok(Some(Self { directory: directory.to_owned(), layout, files }))
    }

    /// The plan being filled.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, tensor: usize) -> Option<&Path> {
        self.place(tensor, 0, 0).ok().map(|(path, ..)| path)
    }

    /// Writes `bytes` at `offset` within the data of the tensor of this index.
    ///
    /// # Errors
    /// [`Error::Io`]: the disk refused, or the bytes would leave the tensor's place.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (path, file, at) = self.place(tensor, offset, bytes.len() as u64)?;
        file.write_all_at(bytes, at).map_err(Error::io(path, "write"))
    }

    /// Reads back what [`Self::write_at`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]: the disk refused, or the range leaves the tensor's place.
    pub fn read_at(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let (path, file, at) = self.place(tensor, offset, bytes.len() as u64)?;
        file.read_exact_at(bytes, at).map_err(Error::io(path, "read back"))
    }

    /// Forces the data of the file that holds this tensor to the disk.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses.
    pub fn sync_tensor(&self, tensor: usize) -> Result<()> {
        let (path, file, _) = self.place(tensor, 0, 0)?;
        file.sync_data().map_err(Error::io(path, "flush"))
    }

    /// Forces everything to the disk, the directory's entries included.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk refuses.
    pub fn finish(self) -> Result<()> {
        for (path, file) in &self.files {
            file.sync_all().map_err(Error::io(path, "flush"))?;
        }
        sync_directory(&self.directory)
    }

    fn place(&self, tensor: usize, offset: u64, len: u64) -> Result<(&Path, &File, u64)> {
        let outside = || Error::Io {
            path: self.directory.clone(),
            action: "write outside a tensor's place in",
            source: io::ErrorKind::InvalidInput.into(),
        };
        let place = self.layout.places.get(tensor).ok_or_else(outside)?;
        let end = offset.checked_add(len).ok_or_else(outside)?;
        if end > place.len {
            return Err(outside());
        }
        let (path, file) = self.files.get(place.file).ok_or_else(outside)?;
        Ok((path, file, place.offset + offset))
    }
}

/// Writes a whole small file and forces it to the disk.
///
/// # Errors
/// [`Error::Io`] when the disk refuses.
pub fn write_synced(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io(path, "create"))?;
    file.write_all(content).map_err(Error::io(path, "write"))?;
    file.sync_all().map_err(Error::io(path, "flush"))
}

/// Forces a directory's entries to the disk.
///
/// # Errors
/// [`Error::Io`] when the disk refuses.
pub fn sync_directory(directory: &Path) -> Result<()> {
    let handle = File::open(directory).map_err(Error::io(directory, "open"))?;
    handle.sync_all().map_err(Error::io(directory, "flush"))
}

/// Makes a file of `len` bytes whose space is really there, where the file system can promise that.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    if len > 0 {
        match rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, len)) {
            // Where the file system cannot reserve, a full disk shows at the write that meets it.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(len)
}

/// Writes a layout of one file whose data are at hand.
pub(crate) fn write_whole(path: &Path, layout: Layout, tensors: &[(TensorDecl, &[u8])]) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    for ((decl, data), place) in tensors.iter().zip(&layout.places) {
        if data.len() as u64 != place.len {
            let problem = format!("its data have {} bytes instead of {}", data.len(), place.len);
            let fault = Fault::Shape { tensor: decl.name.clone(), shape: decl.shape.clone(), problem };
            return Err(Error::Malformed { path: path.to_owned(), fault });
        }
    }
    let files = PlacedFiles::create(directory, layout)?;
    for (i, (_, data)) in tensors.iter().enumerate() {
        files.write_at(i, 0, data)?;
    }
    files.finish()
}
