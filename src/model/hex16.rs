//! Sixteen bytes that people see as 32 hexadecimal digits: identities and chain hashes.

/// Makes a type of 16 bytes that is written, read and serialised as 32 hexadecimal digits.
macro_rules! hex16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::fmt::Display::fmt(self, f)
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                // A sign would be taken for a digit by the parser of numbers.
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(format!("{text:?} is not 32 hexadecimal digits"));
                }
                u128::from_str_radix(text, 16).map(|n| $name(n.to_be_bytes())).map_err(|e| e.to_string())
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                ::schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{32}$" })
            }
        }
    };
}

pub(crate) use hex16;

#[cfg(test)]
mod tests {
    hex16!(
        /// One to test with.
        Sample
    );

    #[test]
    fn only_32_digits_are_read_and_they_come_back() {
        let sample = Sample([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(sample.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(sample.to_string().parse(), Ok(sample));
        assert_eq!(serde_json::from_str::<Sample>(&serde_json::to_string(&sample).unwrap()).unwrap(), sample);
        for bad in [
            "",
            "+00102030405060708090a0b0c0d0eff",
            "000102030405060708090a0b0c0d0ef",
            "g00102030405060708090a0b0c0d0eff",
        ] {
            assert!(bad.parse::<Sample>().is_err(), "{bad}");
        }
    }
}
