//! The images of a store and their names: a value that is replaced, never changed in place.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::Image;
use crate::reference::ImageReference;

/// Fewer digits of an id are not looked for; with one or two nearly every text would be the start of one.
const MIN_PREFIX: usize = 3;

#[derive(Debug, Clone, Default)]
pub(crate) struct Catalog {
    /// By id.
    images: BTreeMap<Digest, Arc<Image>>,
    /// Tags and digests, in canonical form, to ids.
    names: HashMap<String, Digest>,
}

impl Catalog {
    pub(super) fn get(&self, id: &Digest) -> Option<&Arc<Image>> {
        self.images.get(id)
    }

    pub(super) fn owner_of(&self, name: &str) -> Option<&Arc<Image>> {
        self.names.get(name).and_then(|id| self.images.get(id))
    }

    /// Adds an image in place of one with the same id. Its names become its own.
    pub(super) fn insert(&mut self, image: Arc<Image>) {
        self.remove(&image.id);
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            self.names.insert(name.clone(), image.id.clone());
        }
        self.images.insert(image.id.clone(), image);
    }

    pub(super) fn remove(&mut self, id: &Digest) -> Option<Arc<Image>> {
        let image = self.images.remove(id)?;
        self.names.retain(|_, owner| owner != id);
        Some(image)
    }

    pub(super) fn list(&self) -> Vec<Arc<Image>> {
        self.images.values().cloned().collect()
    }

    /// An id, a reference, or the start of an id, in this order: as Docker and crictl take names.
    pub(super) fn resolve(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        if let Some(id) = Digest::from_hex(digits) {
            return Ok(self.images.get(&id).cloned());
        }
        let reference = name.parse::<ImageReference>();
        if let Ok(reference) = &reference {
            // A tag beside a digest says nothing.
            let known = match reference.digest() {
                Some(digest) => reference.with_digest(digest),
                None => reference.to_string(),
            };
            if let Some(image) = self.owner_of(&known) {
                return Ok(Some(Arc::clone(image)));
            }
        }
        let is_start = digits.len() >= MIN_PREFIX
            && digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_start {
            return reference.map(|_| None);
        }
        let mut found = self
            .images
            .values()
            .filter(|image| image.id.hex().starts_with(digits));
        match (found.next(), found.count()) {
            (Some(image), 0) => Ok(Some(Arc::clone(image))),
            (Some(_), more) => Err(ImageError::AmbiguousId {
                prefix: name.to_owned(),
                count: more + 1,
            }),
            (None, _) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(hex: &str, tags: &[&str]) -> Arc<Image> {
        let id = Digest::from_hex(&format!("{hex:0<64}")).unwrap();
        Arc::new(Image {
            repo_digests: vec![format!("docker.io/library/x@{id}")],
            manifest_digest: id.clone(),
            id,
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            size: 0,
            pinned: false,
            config: crate::image::ImageConfig::default(),
            raw_config: Arc::from("{}"),
            layers: Vec::new(),
        })
    }

    fn found(catalog: &Catalog, name: &str) -> Option<String> {
        let image = catalog.resolve(name).unwrap()?;
        Some(image.id.hex().trim_end_matches('0').to_owned())
    }

    #[test]
    fn resolves_every_kind_of_name() {
        let mut catalog = Catalog::default();
        catalog.insert(image("abc1", &["docker.io/library/x:latest"]));
        catalog.insert(image("abd2", &["docker.io/library/abc:latest"]));
        let is = |name: &str, hex: &str| {
            assert_eq!(found(&catalog, name).as_deref(), Some(hex), "{name}")
        };
        is("x", "abc1");
        is("docker.io/library/x:latest", "abc1");
        is("abc1", "abc1");
        is("sha256:abc", "abc1");
        is(&format!("{:0<64}", "abd2"), "abd2");
        is(&format!("sha256:{:0<64}", "abd2"), "abd2");
        is(&format!("x@sha256:{:0<64}", "abc1"), "abc1");
        is(&format!("x:tag@sha256:{:0<64}", "abc1"), "abc1");
        is("abc", "abd2"); // a name before the start of an id
        assert_eq!(found(&catalog, "y"), None);
        assert_eq!(found(&catalog, &"e".repeat(64)), None);
        assert_eq!(
            found(&catalog, "sha256:ab"),
            None,
            "too short, and no such name"
        );
        catalog.insert(image("abc3", &[]));
        assert!(matches!(
            catalog.resolve("sha256:abc"),
            Err(ImageError::AmbiguousId { count: 2, .. })
        ));
        assert!(matches!(
            catalog.resolve("UPPER"),
            Err(ImageError::InvalidReference { .. })
        ));
    }

    #[test]
    fn names_go_with_their_image() {
        let mut catalog = Catalog::default();
        catalog.insert(image("aaa", &["docker.io/library/x:latest"]));
        catalog.insert(image("aaa", &["docker.io/library/y:latest"]));
        assert_eq!(found(&catalog, "x"), None);
        assert_eq!(found(&catalog, "y").as_deref(), Some("aaa"));
        let id = catalog.list()[0].id.clone();
        assert!(catalog.remove(&id).is_some() && catalog.remove(&id).is_none());
        assert_eq!(found(&catalog, "y"), None);
    }
}
