//! The model registry: models in the lake under their name and version, and the records that announce them.
//!
//! ```text
//!  trainer ─ put ─────────► LAKE/models/NAME/VERSION/plots/*.png ─► weights.safetensors ─► manifest.json
//!     │                                                              written in this order, each file once:
//!     └─ announce ─► topic, key = NAME                               with its manifest a model exists
//!                      │
//!  scorer ◄─ load ─────┴─ Announcements: the newest record since the last look
//!            checked: the announced manifest, its weights, a model that this program can use
//! ```
//!
//! The topic is the caller's. Whether and when to use an announced model is the caller's decision, too.

mod announcement;
mod files;
mod load;

pub use announcement::{Announcement, Announcements};
pub use files::{MANIFEST, ModelFiles, WEIGHTS, get, put};
pub use load::{Unusable, load};
