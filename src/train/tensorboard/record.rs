//! The frame of a TFRecord.

use super::crc32c::masked;
use std::io::{self, Write};

/// Appends `data` in one write, so that a crash leaves whole records but for the last: its length (8 bytes, little endian),
/// the length's checksum (4), the data, their checksum (4).
pub(super) fn write_record(file: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked(data).to_le_bytes());
    file.write_all(&record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_framed() {
        let mut file = Vec::new();
        write_record(&mut file, b"123456789").unwrap();
        assert_eq!(file.len(), 9 + 16);
        assert_eq!(file[..8], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(file[8..12], masked(&file[..8]).to_le_bytes());
        assert_eq!(&file[12..21], b"123456789");
        assert_eq!(file[21..], masked(b"123456789").to_le_bytes());
    }
}
