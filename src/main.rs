//! The `handover` program: everything it does is in the library.

fn main() -> std::process::ExitCode {
    handover::cli::main()
}
