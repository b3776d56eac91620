//! SHA-256 of files and bytes, for manifests.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The SHA-256 of `bytes` in lower-case hexadecimal.
#[must_use]
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file's content in lower-case hexadecimal, read in blocks of 1 MiB.
///
/// # Errors
/// What opening or reading the file answers.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut block)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(block.get(..n).unwrap_or_default());
    }
}

/// The SHA-256 of several files' names and contents, in their order, in lower-case hexadecimal.
///
/// # Errors
/// What opening or reading a file answers.
pub fn sha256_files<'p>(paths: impl IntoIterator<Item = &'p Path>) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for path in paths {
        // A digest has one length, so that no name or content can stand for another.
        hasher.update(Sha256::digest(path.file_name().unwrap_or_default().as_encoded_bytes()));
        hasher.update(sha256_file(path)?);
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digest() {
        // FIPS 180-2, appendix B.1
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_bytes(b"abc"), abc);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(sha256_file(&path).unwrap(), abc);
    }
}
