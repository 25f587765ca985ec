/*
Opens examples/browser/ in Debian's headless Chromium, which reaches nothing but 127.0.0.1, from and to JSON:

    node by_browser.cjs path/to/node_modules < question.json

The question has `url`, `text`, perhaps `query`, how many `times` to run, and a file for a `screenshot`. Prints the lines
that the page shows of its state, `loaded` and `done`, and the `rows` of its table, the first that of its heads.
*/
const { readFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { resolve } = require('node:path');

const puppeteer = createRequire(resolve(process.argv[2]) + '/')('puppeteer-core');

const TIMEOUT = 120_000;
const ARGUMENTS = ['--no-sandbox', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'];

async function main({ url, text, query = '', times = 1, screenshot }) {
  const browser = await puppeteer.launch({ executablePath: '/usr/bin/chromium', args: ARGUMENTS });
  try {
    const page = await browser.newPage();
    await page.setViewport({ width: 1000, height: 800 });
    const status = () => page.$eval('#status', (element) => element.textContent);
    const settled = () => page.waitForSelector('button:not([disabled]), .error', { timeout: TIMEOUT });
    await page.goto(url);
    await settled();
    const answer = { loaded: await status() };
    if (!(await page.$('.error'))) {
      await page.evaluate((...values) => {
        [document.getElementById('document').value, document.getElementById('query').value] = values;
      }, text, query);
      for (let i = 0; i < times; i++) {
        await page.click('button');
        await settled();
      }
      answer.done = await status();
      answer.rows = await page.$$eval('tr', (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
    }
    if (screenshot) await page.screenshot({ path: screenshot });
    console.log(JSON.stringify(answer));
  } finally {
    await browser.close();
  }
}

main(JSON.parse(readFileSync(0, 'utf8')));
