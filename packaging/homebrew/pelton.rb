# Builds and installs Pelton from the checkout that this file is in:
#   brew install --HEAD --formula packaging/homebrew/pelton.rb
class Pelton < Formula
  desc "Serve language models from your own machine"
  license "Apache-2.0"
  head "file://#{File.expand_path("../..", __dir__)}", using: :git, branch: "main"

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args(path: "crates/pelton")
    generate_completions_from_executable(bin/"pelton", "completions")
    system bin/"pelton", "man", "--output", buildpath/"man"
    man1.install Dir["man/*.1"]
  end

  service do
    run [opt_bin/"pelton", "serve"]
    keep_alive crashed: true
    log_path var/"log/pelton.log"
    error_log_path var/"log/pelton.log"
  end

  test do
    assert_match "findings", shell_output("#{bin}/pelton doctor --json --set server.port=0", nil)
  end
end
