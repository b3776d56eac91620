//! CRC-32C (Castagnoli), of which a TFRecord carries two.

/// 0x1EDC6F41, its bits reversed (RFC 3720, section 12.1).
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = if remainder & 1 == 1 { (remainder >> 1) ^ POLYNOMIAL } else { remainder >> 1 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
}

/// The checksum of `bytes`.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        // A byte is an index of a table of 256.
        TABLE.get(usize::from(crc as u8 ^ byte)).copied().unwrap_or_default() ^ (crc >> 8)
    })
}

/// The checksum as a TFRecord stores it: turned and shifted, since a checksum over data that hold checksums is weak.
pub(super) fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the catalogue of checksums.
    #[test]
    fn the_vectors_of_the_standard() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(&rising), 0x46DD_794E);
        assert_eq!(crc32c(&falling), 0x113F_DB5C);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn the_mask() {
        // (crc >> 15 | crc << 17) + 0xa282ead8, as TensorFlow's hash/crc32c.h has it.
        let crc: u32 = 0xE306_9283;
        assert_eq!(masked(b"123456789"), crc.rotate_right(15).wrapping_add(0xA282_EAD8));
        assert_eq!(masked(b""), 0xA282_EAD8);
    }
}
