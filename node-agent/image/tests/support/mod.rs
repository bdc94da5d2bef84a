//! Any value of a type, made by driving its `Deserialize` with random choices: a field or variant that is
//! added to a type is covered without a line here.

use fastrand::Rng;
use proptest::prelude::*;
use serde::de::{self, DeserializeOwned, DeserializeSeed, EnumAccess, SeqAccess, VariantAccess, Visitor};

/// Any `T`. Sequences get shorter with depth, so values stay small.
pub(crate) fn any_value<T: DeserializeOwned + std::fmt::Debug>() -> impl Strategy<Value = T> {
    any::<u64>().prop_map(|seed| {
        let mut random = Random { rng: Rng::with_seed(seed), depth: 0 };
        T::deserialize(&mut random).expect("every type of this crate can be made")
    })
}

/// Names of the enum variants that making a `T` from `seed` came through, `Type::Variant`.
#[allow(dead_code, reason = "not every test file asks")]
pub(crate) fn variants_of<T: DeserializeOwned>(seed: u64, seen: &mut std::collections::BTreeSet<String>) {
    let mut random = Random { rng: Rng::with_seed(seed), depth: 0 };
    VARIANTS.with_borrow_mut(std::collections::BTreeSet::clear);
    let _ = T::deserialize(&mut random);
    VARIANTS.with_borrow(|variants| seen.extend(variants.iter().cloned()));
}

thread_local! {
    static VARIANTS: std::cell::RefCell<std::collections::BTreeSet<String>> = const { std::cell::RefCell::new(std::collections::BTreeSet::new()) };
}

struct Random {
    rng: Rng,
    depth: u32,
}

#[derive(Debug)]
struct Never;

impl std::fmt::Display for Never {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cannot make this type")
    }
}

impl std::error::Error for Never {}

impl de::Error for Never {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Never
    }
}

impl Random {
    /// A number that is often small, zero or all ones.
    fn number(&mut self) -> u64 {
        match self.rng.u8(..4) {
            0 => 0,
            1 => self.rng.u64(..256),
            2 => u64::MAX,
            _ => self.rng.u64(..),
        }
    }

    fn length(&mut self) -> usize {
        let most = match self.depth {
            0..=2 => 3,
            3..=5 => 2,
            _ => 1,
        };
        self.rng.usize(..=most)
    }

    fn text(&mut self) -> String {
        let length = self.rng.usize(..12);
        (0..length).map(|_| ['/', 'a', 'é', '\0', '𝄞', ' '][self.rng.usize(..6)]).collect()
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "any bits will do")]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
            visitor.$visit(self.number() as $type)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &mut Random {
    type Error = Never;

    numbers!(
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    );

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Never> {
        Err(Never)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        visitor.visit_bool(self.rng.bool())
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        visitor.visit_string(self.text())
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        visitor.visit_string(self.text())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        if self.rng.bool() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Never> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        let left = self.length();
        self.depth += 1;
        let value = visitor.visit_seq(Elements { random: self, left });
        self.depth -= 1;
        value
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Never> {
        visitor.visit_seq(Elements { random: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Never> {
        visitor.visit_seq(Elements { random: self, left: fields.len() })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Never> {
        let index = self.rng.usize(..variants.len());
        VARIANTS.with_borrow_mut(|seen| seen.insert(format!("{name}::{}", variants[index])));
        visitor.visit_enum(Variant { random: self, index: u32::try_from(index).unwrap() })
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Never> {
        let bytes: Vec<u8> = (0..self.length()).map(|_| self.rng.u8(..)).collect();
        visitor.visit_byte_buf(bytes)
    }

    serde::forward_to_deserialize_any! {
        f32 f64 char unit_struct tuple_struct map identifier ignored_any
    }
}

struct Elements<'a> {
    random: &'a mut Random,
    left: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Never;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Never> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.random).map(Some)
    }
}

struct Variant<'a> {
    random: &'a mut Random,
    index: u32,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Never;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Never> {
        let index = de::value::U32Deserializer::<Never>::new(self.index);
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Never;

    fn unit_variant(self) -> Result<(), Never> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Never> {
        seed.deserialize(self.random)
    }

    fn tuple_variant<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Never> {
        visitor.visit_seq(Elements { random: self.random, left })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Never> {
        visitor.visit_seq(Elements { random: self.random, left: fields.len() })
    }
}
