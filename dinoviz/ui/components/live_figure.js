// A figure that is redrawn in place, so that nothing flickers and the zoom stays.
// element, props and watch are given by gradio.
const root = element.querySelector('.dv-live'), title = root.querySelector('figcaption'), plot = root.querySelector('.dv-plot')
const config = space => ({displaylogo: false, modeBarButtons: [['toImage', space ? 'resetCameraDefault3d' : 'resetScale2d']]})
let shown = null  // what is drawn: figure and colours
let width = 0      // that it was drawn at

// Loaded once a page, with the first figure, from the page's own host.
function library() {
    window.dvPlotly ??= new Promise((resolve, reject) => {
        const path = props.script.split('/').map(encodeURIComponent).join('/')
        const script = document.createElement('script')
        script.src = `${window.gradio_config?.root ?? ''}/gradio_api/file=${path}`
        script.onload = () => resolve(window.Plotly)
        script.onerror = () => { window.dvPlotly = null; script.remove(); reject() }  // the next figure tries again
        document.head.append(script)
    })
    return window.dvPlotly
}

function colours() {
    const style = getComputedStyle(root)
    return {text: style.color, back: style.getPropertyValue('--background-fill-primary').trim() || 'white'}
}

async function draw() {
    root.classList.toggle('dv-empty', !props.figure)
    title.textContent = props.title
    root.setAttribute('aria-label', props.description || props.title)
    if (!props.figure || !plot.clientWidth) return  // a hidden tab; the observer calls again when it is shown
    let Plotly
    try { Plotly = await library() } catch {
        plot.textContent = 'plotly.js could not be loaded: reload the page.'
        return
    }
    const {text, back} = colours(), wanted = `${text} ${back} ${props.figure}`
    if (wanted === shown || !plot.clientWidth || !props.figure) return
    if (shown === null) plot.replaceChildren()
    shown = wanted
    width = plot.clientWidth
    const {data, layout} = JSON.parse(props.figure)
    const themed = {
        font: {...layout.font, color: text},
        hoverlabel: {bgcolor: back, font: {color: text}, align: 'left'},
        modebar: {bgcolor: 'transparent', color: text, activecolor: text},
    }
    // By group, so that it holds for new curves too, such as those of another run.
    const hidden = new Set(plot.data?.filter(curve => curve.visible === 'legendonly').map(curve => curve.legendgroup))
    for (const curve of data) if (hidden.has(curve.legendgroup)) curve.visible = 'legendonly'
    await Plotly.react(plot, data, {...layout, ...themed}, config(layout.scene))
}

new ResizeObserver(() => {
    if (!plot.clientWidth || plot.clientWidth === width) return
    if (shown === null) return draw()
    width = plot.clientWidth
    window.Plotly.Plots.resize(plot)
    draw()
}).observe(plot)
new MutationObserver(draw).observe(document.body, {attributes: true, attributeFilter: ['class']})  // light or dark
watch(['figure', 'title', 'description'], draw)
draw()
