//! Checksums as the vendors' tools compute them, over the vendor's file as it was shipped.

use super::tool::Tool;
use crate::folder::Migration;
use sha2::{Digest, Sha256, Sha384};
use siphasher::sip::SipHasher13;
use std::fmt::Write;
use std::hash::{Hash, Hasher};

/// The checksum that the tool keeps of a file, as its table shows it; none if it keeps none.
///
/// `narrow`: refinery's versions have 32 bits, which its checksum depends on.
pub fn of(tool: Tool, file: &Migration, narrow: bool) -> Option<String> {
    match tool {
        Tool::Sqlx => Some(hex(&Sha384::digest(file.shipped.as_bytes()))),
        Tool::Prisma => Some(hex(&Sha256::digest(file.shipped.as_bytes()))),
        Tool::Flyway => Some(lines(&file.shipped).to_string()),
        Tool::Refinery => refinery(file, narrow),
        _ => None,
    }
}

/// Another one that the tool takes for the same.
pub fn tolerated(tool: Tool, file: &Migration) -> Option<String> {
    // Prisma looks past line ends.
    (tool == Tool::Prisma).then(|| hex(&Sha256::digest(file.shipped.replace("\r\n", "\n").as_bytes())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// refinery hashes name, version and text, each as Rust hashes it.
fn refinery(file: &Migration, narrow: bool) -> Option<String> {
    let mut hasher = SipHasher13::new();
    file.title.as_str().hash(&mut hasher);
    if narrow {
        file.number.parse::<i32>().ok()?.hash(&mut hasher);
    } else {
        file.number.parse::<i64>().ok()?.hash(&mut hasher);
    }
    file.shipped.as_str().hash(&mut hasher);
    Some(hasher.finish().to_string())
}

/// Flyway's: CRC-32 over the lines without their ends, shown as a signed number.
fn lines(text: &str) -> i32 {
    let text = text.trim_start_matches('\u{feff}');
    let bytes = text.bytes().filter(|b| !matches!(b, b'\n' | b'\r'));
    crc32(bytes).cast_signed()
}

fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use crate::script::Script;

    fn file(name: &str, text: &str) -> Migration {
        let parsed = Names::Refinery.parse(name).unwrap();
        Migration {
            folder: "m".into(),
            names: Names::Refinery,
            number: parsed.number,
            title: parsed.title,
            kind: parsed.kind,
            file: name.into(),
            script: name.into(),
            may_be_late: false,
            up: Script::parse(name, text, false).unwrap(),
            down: None,
            replaced_by: None,
            shipped: text.into(),
        }
    }

    #[test]
    fn checksums_are_the_tools_own() {
        // The check value of this CRC, and the digests of `abc` in FIPS 180-4.
        assert_eq!(crc32("123456789".bytes()), 0xcbf4_3926);
        assert_eq!(lines("\u{feff}1234\r\n56789\n"), 0xcbf4_3926_u32.cast_signed());
        let abc = file("V1__abc.sql", "abc");
        assert!(
            of(Tool::Sqlx, &abc, false)
                .unwrap()
                .starts_with("cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163")
        );
        assert!(of(Tool::Prisma, &abc, false).unwrap().starts_with("ba7816bf8f01cfea414140de5dae2223"));
        // refinery itself tells its own.
        let theirs = refinery::Migration::unapplied("V1__abc", "abc").unwrap().checksum().to_string();
        assert_eq!(of(Tool::Refinery, &abc, false), Some(theirs.clone()));
        assert_ne!(of(Tool::Refinery, &abc, true), Some(theirs));
        assert_eq!(of(Tool::Popx, &abc, false), None);
    }
}
