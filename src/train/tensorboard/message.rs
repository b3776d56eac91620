//! The protocol buffers of an event file, of which three kinds are written (TensorFlow's `event.proto` and
//! `summary.proto`): a version, a restart, and scalars.

/// Field types of the wire format.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// `Event { wall_time, file_version }`, the first of a file.
pub(super) fn version(wall_time: f64) -> Vec<u8> {
    let mut event = head(wall_time, 0);
    bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// `Event { wall_time, step, session_log { status: START } }`: what other files of the folder hold from `step` on is void.
pub(super) fn restart(wall_time: f64, step: u64) -> Vec<u8> {
    let mut log = Vec::new();
    key(&mut log, 1, VARINT);
    varint(&mut log, 1);
    let mut event = head(wall_time, step);
    bytes(&mut event, 7, &log);
    event
}

/// `Event { wall_time, step, summary { value { tag, simple_value } … } }`; TensorBoard keeps values in single precision.
pub(super) fn scalars(wall_time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in values {
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        key(&mut value, 2, FIXED32);
        value.extend((*number as f32).to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    let mut event = head(wall_time, step);
    bytes(&mut event, 5, &summary);
    event
}

fn head(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, FIXED64);
    event.extend(wall_time.to_le_bytes());
    if step > 0 {
        key(&mut event, 2, VARINT);
        varint(&mut event, step);
    }
    event
}

fn key(out: &mut Vec<u8>, field: u64, kind: u64) {
    varint(out, field << 3 | kind);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    key(out, field, BYTES);
    varint(out, content.len() as u64);
    out.extend(content);
}

/// Seven bits a byte, the lowest first; the eighth bit says that more follow.
fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_sevens() {
        let encoded = |number| {
            let mut out = Vec::new();
            varint(&mut out, number);
            out
        };
        assert_eq!(encoded(0), [0]);
        assert_eq!(encoded(127), [0x7F]);
        assert_eq!(encoded(128), [0x80, 0x01]);
        // The example of the wire format's description.
        assert_eq!(encoded(150), [0x96, 0x01]);
        assert_eq!(encoded(u64::MAX).len(), 10);
    }

    #[test]
    fn the_bytes_of_each_kind() {
        let time = 2.0_f64.to_le_bytes();
        let expected = [&[0x09][..], &time, &[0x1A, 13], b"brain.Event:2"].concat();
        assert_eq!(version(2.0), expected);
        let expected = [&[0x09][..], &time, &[0x10, 0x96, 0x01, 0x3A, 2, 0x08, 1]].concat();
        assert_eq!(restart(2.0, 150), expected);
        let value = [&[0x0A, 2][..], b"lr", &[0x15], &0.5_f32.to_le_bytes()].concat();
        let expected = [&[0x09][..], &time, &[0x10, 3, 0x2A, 11, 0x0A, 9], &value].concat();
        assert_eq!(scalars(2.0, 3, &[("lr".to_owned(), 0.5)]), expected);
    }
}
