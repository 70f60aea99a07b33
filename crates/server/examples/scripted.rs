//! A server without a model, to try clients against: `cargo run -p server --example scripted`.

#[path = "../tests/suite/scripted.rs"]
mod scripted;

#[tokio::main]
async fn main() -> Result<(), server::ServerError> {
    tracing_subscriber::fmt().init();
    let port = std::env::var("PELTON_PORT").ok().and_then(|port| port.parse().ok());
    let mut options = server::ServerOptions::default();
    options.listen.port = port.unwrap_or(8080);
    let shutdown = async {
        // Without a signal handler the process just ends at the signal.
        let _ = tokio::signal::ctrl_c().await;
    };
    server::serve(scripted::Scripted::new(), options, shutdown).await
}
