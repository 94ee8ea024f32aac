// Reads an AsyncAPI document with the parser of its makers: node tests/asyncapi_check.cjs FILE
// NODE_PATH says where @asyncapi/parser is installed. Exits with 1 where it finds an error.
const { Parser, DiagnosticSeverity } = require("@asyncapi/parser");
const { readFileSync } = require("fs");

new Parser().parse(readFileSync(process.argv[2], "utf8")).then(({ document, diagnostics }) => {
  const errors = diagnostics.filter((it) => it.severity === (DiagnosticSeverity?.Error ?? 0));
  for (const it of errors) console.log(it.code, it.path.join("."), it.message);
  if (!document || errors.length) process.exit(1);
  console.log(document.allChannels().all().map((it) => it.address()).join(" "));
});
