package windows

// envTestDriver names the built test driver (testdata/driver). It speaks the protocol and captures nothing; tests that
// need it are skipped without it.
const envTestDriver = "DIVERT_TEST_DRIVER"

// envCommand names the command divert, built for Windows, which tests run against the test driver.
const envCommand = "DIVERT_TEST_COMMAND"
