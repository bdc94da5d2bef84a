//! Lists of system calls for a skeleton, with the memory that they point to.

use sys::tape::{self, Program, Size};

/// One system call that a skeleton makes.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// What it does, for error messages.
    pub(crate) what: &'static str,
    /// Its number.
    pub(crate) nr: i64,
    /// Its arguments.
    pub(crate) args: Vec<Arg>,
    /// Errors after which the list goes on.
    pub(crate) accepted: &'static [i32],
}

/// One argument.
#[derive(Clone, Debug)]
pub(crate) enum Arg {
    /// A number.
    Value(u64),
    /// The address of a copy of these bytes.
    Block(Block),
}

impl std::fmt::Display for Arg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Value(value) if *value < 4096 => write!(f, "{value}"),
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::Block(block) => match block.bytes.split_last() {
                Some((0, text))
                    if !text.is_empty() && text.iter().all(|b| b.is_ascii_graphic() || *b == b' ') =>
                {
                    write!(f, "{:?}", String::from_utf8_lossy(text))
                }
                _ => write!(f, "[{} bytes]", block.bytes.len()),
            },
        }
    }
}

/// Bytes in the tape's memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    bytes: Vec<u8>,
    links: Vec<(usize, Block)>,
    read_back: bool,
}

impl Block {
    /// A copy of these bytes.
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), ..Self::default() }
    }

    /// A string with its final NUL.
    pub(crate) fn text(text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        Self::new(bytes)
    }

    /// Little-endian words.
    pub(crate) fn words(words: &[u64]) -> Self {
        Self::new(words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Room for an answer, returned by the run.
    pub(crate) fn answer(len: usize) -> Self {
        Self { bytes: vec![0; len], read_back: true, ..Self::default() }
    }

    /// Stores the address of `to` at `offset`.
    pub(crate) fn link(mut self, offset: usize, to: Self) -> Self {
        self.links.push((offset, to));
        self
    }

    fn space(&self) -> usize {
        aligned(self.bytes.len()) + self.links.iter().map(|(_, b)| b.space()).sum::<usize>()
    }
}

impl From<Block> for Arg {
    fn from(block: Block) -> Self {
        Self::Block(block)
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::Value(i64::from(value).cast_unsigned())
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::Value(u64::from(value))
    }
}

impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Self::Value(value.cast_unsigned())
    }
}

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self::Value(value as u64)
    }
}

/// Builds a [`Call`]: `call!("umask", SYS_umask, mask)`.
macro_rules! call {
    ($what:expr, $nr:expr $(, $arg:expr)* $(,)?) => {
        $crate::target::script::Call {
            what: $what,
            nr: $nr,
            args: vec![$($crate::target::script::Arg::from($arg)),*],
            accepted: &[],
        }
    };
}
pub(crate) use call;

impl Call {
    /// The list goes on after these errors.
    pub(crate) fn accept(mut self, errors: &'static [i32]) -> Self {
        self.accepted = errors;
        self
    }

    fn space(&self) -> usize {
        self.args.iter().map(|a| if let Arg::Block(b) = a { b.space() } else { 0 }).sum()
    }
}

/// A program made of calls from the front of a list, as many as fit a slot of the tape.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// What the tape takes.
    pub(crate) program: Program,
    /// How many calls it holds.
    pub(crate) count: usize,
    /// Answers: the call and its block.
    pub(crate) answers: Vec<(usize, tape::Block)>,
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Makes a program of as many calls from the front as fit into `size`.
pub(crate) fn load(calls: &[Call], size: Size) -> Loaded {
    let mut loaded = Loaded::default();
    for call in calls.iter().take(size.records) {
        if loaded.program.memory() + call.space() > size.scratch {
            break;
        }
        let index = loaded.count;
        let args: Vec<tape::Arg> = call
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Value(value) => tape::Arg::Value(*value),
                Arg::Block(block) => tape::Arg::Address(loaded.place(index, block)),
            })
            .collect();
        if call.accepted.is_empty() {
            loaded.program.call(call.nr, &args);
        } else {
            loaded.program.try_call(call.nr, &args);
        }
        loaded.count += 1;
    }
    loaded
}

impl Loaded {
    fn place(&mut self, call: usize, block: &Block) -> tape::Block {
        let at = self.program.bytes(&block.bytes);
        if block.read_back {
            self.answers.push((call, at));
        }
        for (offset, to) in &block.links {
            let to = self.place(call, to);
            self.program.link(at, *offset, to);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_where_room_ends() {
        let calls: Vec<Call> = (0..5).map(|_| call!("write", 1, 1, Block::new(vec![7; 20]), 20)).collect();
        let size = |records, scratch| Size { slots: 1, records, scratch };
        assert_eq!(load(&calls, size(10, 80)).count, 3);
        assert_eq!(load(&calls, size(2, 80)).count, 2);
        assert_eq!(load(&calls, size(10, 23)).count, 0);
    }

    #[test]
    fn answers_are_found_in_nested_blocks() {
        let message = Block::new(vec![0; 16]).link(8, Block::answer(24));
        let loaded = load(&[call!("a", 1), call!("recvmsg", 47, 3, message)], Size::default());
        assert_eq!(loaded.answers.iter().map(|(call, _)| *call).collect::<Vec<_>>(), [1]);
        assert_eq!(loaded.program.memory(), 40);
    }
}
