//! `plugin new`: the template plugin, written as a crate of its own.

use std::path::{Path, PathBuf};

use drophammer_sdk::manifest::is_id;

use super::print;
use crate::failure::{Exit, Failure, Result};

/// The template's files, as it is built and tested in this project.
const FILES: [(&str, &str); 6] = [
    ("plugin.toml", include_str!("../../../../plugins/template/plugin.toml")),
    ("src/lib.rs", include_str!("../../../../plugins/template/src/lib.rs")),
    ("src/probe.rs", include_str!("../../../../plugins/template/src/probe.rs")),
    ("src/convert.rs", include_str!("../../../../plugins/template/src/convert.rs")),
    ("src/quantize.rs", include_str!("../../../../plugins/template/src/quantize.rs")),
    ("src/session.rs", include_str!("../../../../plugins/template/src/session.rs")),
];

/// The line of the template that names it; everything else follows from it.
const ID_IN_CODE: &str = "const ID: &str = \"template\";";
const ID_IN_MANIFEST: &str = "id = \"template\"";
const CAPABILITY: &str = "capabilities = [\"template\"]";

/// Where this program's own sources had the SDK.
const OWN_SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk");

/// Writes the crate `into/name`.
///
/// # Errors
/// When the name is none for a plugin, the directory exists, or the SDK is not there.
pub(super) fn write(name: &str, into: &Path, sdk: Option<PathBuf>) -> Result<()> {
    if !is_id(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        let message = format!("`{name}` cannot be a plugin's name");
        return Err(Failure::new(
            Exit::Usage,
            message,
            "use lower-case letters, digits and `-`, a letter first",
        ));
    }
    let sdk = find(sdk)?;
    let crate_directory = into.join(name);
    if crate_directory.exists() {
        let message = format!("{} is there already", crate_directory.display());
        return Err(Failure::new(Exit::Usage, message, "choose another name, or another place with --into"));
    }
    let manifest = manifest(name, &sdk);
    let own = [("Cargo.toml", manifest.as_str()), (".gitignore", "/target\n")];
    for (file, text) in own.into_iter().chain(FILES) {
        let path = crate_directory.join(file);
        let named = text
            .replace(ID_IN_CODE, &ID_IN_CODE.replace("template", name))
            .replace(ID_IN_MANIFEST, &ID_IN_MANIFEST.replace("template", name))
            .replace(CAPABILITY, &CAPABILITY.replace("template", name));
        let directory = path.parent().unwrap_or(&crate_directory);
        std::fs::create_dir_all(directory).map_err(|error| Failure::io(directory, &error))?;
        std::fs::write(&path, named).map_err(|error| Failure::io(&path, &error))?;
    }
    let library =
        format!("{}{}{}", std::env::consts::DLL_PREFIX, name.replace('-', "_"), std::env::consts::DLL_SUFFIX);
    print(&format!(
        "{0} is a plugin that works as it is. To build it, and put it where drophammer finds it:\n\n  \
         cd {0}\n  cargo build --release\n  drophammer plugin install target/release/{library}\n  \
         drophammer plugin info {name}\n",
        crate_directory.display()
    ));
    Ok(())
}

/// The SDK's folder, absolute.
fn find(sdk: Option<PathBuf>) -> Result<PathBuf> {
    let place = sdk.unwrap_or_else(|| OWN_SDK.into());
    let found =
        std::fs::canonicalize(&place).ok().filter(|place| place.join("../formats/Cargo.toml").is_file());
    found.filter(|place| place.join("Cargo.toml").is_file()).ok_or_else(|| {
        let message = format!("the plugin SDK is not in {}", place.display());
        Failure::new(
            Exit::Failed,
            message,
            "get Drophammer's sources and name their core/sdk folder with --sdk",
        )
    })
}

/// A manifest that stands on its own, wherever the crate lies.
fn manifest(name: &str, sdk: &Path) -> String {
    let formats = sdk.parent().unwrap_or(sdk).join("formats");
    let (sdk, formats) = (sdk.to_string_lossy(), formats.to_string_lossy());
    format!(
        "[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [lib]\ncrate-type = [\"cdylib\"]\n\n\
         [dependencies]\ndrophammer-sdk = {{ path = {sdk:?} }}\n\
         # Readers and writers of model files; leave it out if your runtime brings its own.\n\
         drophammer-formats = {{ path = {formats:?} }}\nhalf = \"2\"\n\n\
         # A workspace of its own, also inside of another one.\n[workspace]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_names_itself_where_it_is_renamed_and_nowhere_else() {
        let home = tempfile::tempdir().unwrap();
        write("my-backend", home.path(), None).unwrap();
        for (file, text) in FILES {
            let written = std::fs::read_to_string(home.path().join("my-backend").join(file)).unwrap();
            assert_eq!(written.lines().count(), text.lines().count(), "{file}");
            assert!(!written.contains("\"template\""), "{file} is still called after the template");
        }
        assert!(write("my-backend", home.path(), None).is_err(), "nobody's directory is written over");
        for name in ["", "../up", "Upper", "7up", "a b", "-x"] {
            assert!(write(name, home.path(), None).is_err(), "{name:?}");
        }
    }
}
