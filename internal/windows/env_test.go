package windows

// envTestDriver names the test driver (testdata/driver), built. It speaks the protocol and captures nothing;
// the tests that need it are skipped without.
const envTestDriver = "DIVERT_TEST_DRIVER"

// envCommand names the command divert, built for Windows, which tests run against the test driver.
const envCommand = "DIVERT_TEST_COMMAND"
