//! Whole directories: giving one another name, listing them, removing them. For data that are set aside because they are
//! damaged. Every change is durable when its function returns.
//!
//! Proven by the test below and by `tests/mirrors/verify.rs`.

use std::fs::{self, File};
use std::io;
use std::path::Path;

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Gives the directory `dir/from` the name `dir/to`, which must be free, in one step. Says whether there was one.
pub fn rename(dir: &Path, from: &str, to: &str) -> io::Result<bool> {
    if dir.join(to).exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    match fs::rename(dir.join(from), dir.join(to)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    sync(dir)?;
    Ok(true)
}

/// Removes the directory `dir/name` with all that is in it; nothing to do when there is none.
pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(name)) {
        Ok(()) => sync(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The names of the directories in `dir` that begin with `prefix`, sorted.
pub fn list(dir: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with(prefix)
            && entry.file_type()?.is_dir()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_renamed_listed_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        assert!(!rename(dir, "history", "history.damaged-1").unwrap(), "there is none");
        fs::create_dir_all(dir.join("history/sub")).unwrap();
        fs::write(dir.join("history/file"), "x").unwrap();
        assert!(rename(dir, "history", "history.damaged-1").unwrap());
        assert_eq!(fs::read_to_string(dir.join("history.damaged-1/file")).unwrap(), "x");
        fs::create_dir(dir.join("history")).unwrap();
        assert!(rename(dir, "history", "history.damaged-1").is_err(), "the name is taken");
        assert_eq!(list(dir, "history.damaged-").unwrap(), ["history.damaged-1"]);
        remove(dir, "history.damaged-1").unwrap();
        remove(dir, "history.damaged-1").unwrap();
        assert!(list(dir, "history.damaged-").unwrap().is_empty());
        assert_eq!(list(dir, "").unwrap(), ["history"]);
    }
}
