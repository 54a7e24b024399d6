// Validates manifests of the Prometheus operator's kinds: operator.js NODE_MODULES FILE..., each a JSON list. A kind that the
// package does not know is a failure too.
const fs = require("fs");
const path = require("path");

const [modules, ...files] = process.argv.slice(2);
const kinds = require(path.join(modules, "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1"));

let count = 0;
for (const file of files) {
  for (const manifest of JSON.parse(fs.readFileSync(file, "utf8"))) {
    if (manifest.apiVersion !== "monitoring.coreos.com/v1" || !(manifest.kind in kinds)) {
      throw new Error(`${manifest.apiVersion} ${manifest.kind} is not known`);
    }
    new kinds[manifest.kind](manifest).validate();
    count += 1;
  }
}
// The validator must be able to refuse, or it proves nothing.
let refused = false;
try {
  new kinds.ServiceMonitor({ metadata: { name: "x" }, spec: { selector: {}, endpoints: [{ port: 5 }] } }).validate();
} catch (error) {
  refused = true;
}
if (!refused) throw new Error("a ServiceMonitor with a wrong port was not refused");
console.log(`ok: ${count} manifests of the Prometheus operator are valid`);
