//! /proc/PID/uid_map and gid_map: the ids of a user namespace, see user_namespaces(7).

use super::{ProcError, lines, number, text, words};

/// Which ids of a user namespace are which of this process's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// First id inside, first id here, how many.
    extents: Vec<(u32, u32, u32)>,
}

impl IdMap {
    /// Parses a map.
    ///
    /// # Errors
    /// [`ProcError::Parse`] with the line.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProcError> {
        let extent = |line: &[u8]| {
            let mut fields = words(line).map(number::<u32>);
            Some((fields.next()??, fields.next()??, fields.next()??))
        };
        let extents = lines(bytes)
            .map(|line| extent(line).ok_or_else(|| ProcError::parse("an id map", text(line))))
            .collect::<Result<_, _>>()?;
        Ok(Self { extents })
    }

    /// The id inside; `None` when the namespace does not have it.
    #[must_use]
    pub fn inside(&self, here: u32) -> Option<u32> {
        self.extents.iter().find_map(|&(inside, first, count)| {
            let at = here.checked_sub(first)?;
            (at < count).then(|| inside.checked_add(at))?
        })
    }

    /// The id here of one inside; `None` when it is not mapped.
    #[must_use]
    pub fn here(&self, inside: u32) -> Option<u32> {
        self.extents.iter().find_map(|&(first, here, count)| {
            let at = inside.checked_sub(first)?;
            (at < count).then(|| here.checked_add(at))?
        })
    }
}

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub uid: IdMap,
    /// Groups.
    pub gid: IdMap,
}

impl IdMaps {
    /// Those of a process's user namespace. Without one of its own every id is itself.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read(pid: i32) -> Result<Self, ProcError> {
        Ok(Self {
            uid: IdMap::parse(&super::read(pid, "uid_map")?)?,
            gid: IdMap::parse(&super::read(pid, "gid_map")?)?,
        })
    }

    /// User and group here of the namespace's root; `None` when it is this process's own or not mapped.
    #[must_use]
    pub fn root(&self) -> Option<(u32, u32)> {
        let root = (self.uid.here(0)?, self.gid.here(0)?);
        (root != (0, 0)).then_some(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_both_ways_and_only_where_mapped() {
        let map =
            IdMap::parse(b"         0     100000      65536\n     70000          5          1\n").unwrap();
        assert_eq!(
            (map.inside(100_000), map.inside(165_535), map.inside(5)),
            (Some(0), Some(65_535), Some(70_000))
        );
        assert_eq!((map.inside(0), map.inside(165_536), map.inside(6)), (None, None, None));
        assert_eq!((map.here(33), map.here(70_000), map.here(65_536)), (Some(100_033), Some(5), None));
        assert!(IdMap::parse(b"0 1\n").is_err());
    }

    #[test]
    fn the_whole_range_is_itself() {
        let own = IdMap::parse(b"         0          0 4294967295\n").unwrap();
        assert_eq!((own.inside(4_294_967_294), own.here(7)), (Some(4_294_967_294), Some(7)));
        assert_eq!(IdMaps { uid: own.clone(), gid: own }.root(), None);
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(IdMaps::read(pid).unwrap().uid.inside(0).is_some());
    }
}
