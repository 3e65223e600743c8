//! placeholder
use crate::state::App;
use axum::Router;
/// SDL.
pub fn sdl() -> String { String::new() }
pub fn routes(_: &App) -> Router<App> { Router::new() }
