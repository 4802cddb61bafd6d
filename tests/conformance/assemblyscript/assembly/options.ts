// The configuration of these filters: lines of `name: value`. (AssemblyScript has no built-in JSON parser.)

export class Options {
  private values: Map<string, string> = new Map();

  constructor(text: string) {
    const lines = text.split("\n");
    for (let i = 0; i < lines.length; i++) {
      const colon = lines[i].indexOf(":");
      if (colon > 0) this.values.set(lines[i].slice(0, colon).trim(), lines[i].slice(colon + 1).trim());
    }
  }

  get(name: string, otherwise: string = ""): string {
    return this.values.has(name) ? this.values.get(name) : otherwise;
  }

  names(): string[] {
    return this.values.keys();
  }
}
